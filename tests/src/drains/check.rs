//! What of a drain breaks the promise. Pure.
//!
//! In: a story. Out: sentences, none when all is well. It reads no clock and asks nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use inferq_shared::reply::Status;

use super::story::{FIRST, Jobs, Phase, Story, Update};
use super::{Kind, Terms};
use crate::kubelet::{End, How, Seen};

#[cfg(test)]
mod tests;

/// A worker that has nothing in hand ends within so long.
pub const AT_ONCE: Duration = Duration::from_secs(3);

/// What ending takes beyond the drain limit where the broker does not answer.
pub fn closing_max(broker: Kind) -> Duration {
    let seconds = match broker {
        Kind::Memory => 0,
        // How long SQLite waits for another process's write lock, once for each of the last writes.
        Kind::Sqlite => 60,
        // Until heartbeats show that the connection is lost, and its farewell.
        Kind::Rabbitmq => 25,
        // The last words.
        Kind::PubSub => 8,
    };
    Duration::from_secs(seconds)
}

/// Everything that is wrong with one stop.
pub fn stop(story: &Story) -> Vec<String> {
    let broken = [jobs(&story.jobs), ending(story), hands(story), seen(story)].concat();
    // Where nothing reaches the broker nothing can be given back to it.
    let settled = if story.phase == Phase::Stalled {
        Vec::new()
    } else {
        settled(story.broker, story.free_release, &story.jobs, (story.unsettled, 1))
    };
    [broken, settled].concat()
}

/// Everything that is wrong with a rolling update.
pub fn update(update: &Update) -> Vec<String> {
    let mut broken = jobs(&update.jobs);
    broken.extend(update.ends.iter().filter_map(|end| in_time(end, update.terms)));
    let expected = if update.updating { 3 } else { 0 };
    if update.ends.len() != expected {
        broken.push(format!("{} workers are replaced, not {expected}", update.ends.len()));
    }
    broken.extend(settled(
        update.broker,
        update.free_release,
        &update.jobs,
        (update.unsettled, update.ends.len() as u32),
    ));
    broken
}

/// The worker settled all that it had, and where giving back is free no attempt is spent.
///
/// A quorum queue of RabbitMQ itself takes back what it was delivering in the instant at which a subscription ended, and
/// before 4.3 counts it: no client ever sees that delivery (rabbitmq/rabbitmq-server issue 3729). So there a job may lose
/// one attempt by each stop.
fn settled(broker: Kind, free_release: bool, jobs: &Jobs, (unsettled, stops): (usize, u32)) -> Vec<String> {
    let mut broken = Vec::new();
    if unsettled > 0 {
        broken.push(format!("{unsettled} leases could not be settled"));
    }
    let (spent, most) = (jobs.attempts_spent(), jobs.replies.iter().map(|reply| reply.attempt).max().unwrap_or(1));
    if free_release && spent > 0 && broker != Kind::Rabbitmq {
        broken.push(format!("{spent} attempts are spent"));
    }
    if broker == Kind::Rabbitmq && most > 1 + stops {
        broken.push(format!("a job is at attempt {most}"));
    }
    broken
}

/// Every job has a reply, all of a job's replies say the same, and that it succeeded.
fn jobs(jobs: &Jobs) -> Vec<String> {
    let mut broken = Vec::new();
    let mut contents: BTreeMap<usize, &str> = BTreeMap::new();
    for reply in &jobs.replies {
        let job = reply.job;
        if reply.status != Status::Succeeded {
            broken.push(format!("job {job} is answered {}: {}", reply.status.as_str(), reply.content));
        }
        let first = *contents.entry(job).or_insert(&reply.content);
        if first != reply.content {
            broken.push(format!("job {job} has two contents: {first} and {}", reply.content));
        }
    }
    let lost = (0..jobs.published).filter(|job| !contents.contains_key(job));
    broken.extend(lost.map(|job| format!("job {job} is never answered")));
    broken.extend(jobs.dead.then(|| "there are dead letters".to_owned()));
    broken
}

/// Whether a worker ended by itself, drained and within its grace.
fn in_time(end: &End, Terms { grace, .. }: Terms) -> Option<String> {
    let is_well = end.how == How::Exited(0) && end.took <= grace && end.word.is_empty();
    (!is_well).then(|| format!("it ends {} after {:?} of {grace:?}, with the word {:?}", end.how, end.took, end.word))
}

/// In time, and no later than what it had in hand needs.
fn ending(story: &Story) -> Vec<String> {
    let Story { phase, end, terms, .. } = story;
    let (limit, took) = (terms.drain_limit, end.took);
    if *phase == Phase::Stalled {
        let bound = limit + closing_max(story.broker);
        let is_well = match end.how {
            How::Exited(0) => took <= bound,
            How::Killed => terms.grace < bound,
            _ => false,
        };
        return (!is_well).then(|| format!("it ends {} after {took:?}, not {bound:?}", end.how)).into_iter().collect();
    }
    let late = match phase {
        Phase::Loading | Phase::Warming | Phase::Idle => took > AT_ONCE,
        Phase::MidBatch | Phase::Publishing => took >= limit,
        Phase::LongBatch => took < limit,
        Phase::Stalled => false,
    };
    let late = late.then(|| format!("it ends after {took:?}, with a drain limit of {limit:?}"));
    in_time(end, *terms).into_iter().chain(late).collect()
}

/// What the stopped worker did with the jobs.
fn hands(story: &Story) -> Vec<String> {
    let (answered, back) = (story.jobs.answered_by(FIRST), story.given_back);
    if story.settled_before > 0 && matches!(story.phase, Phase::Publishing | Phase::Stalled) {
        return vec![format!("{} replies pass before it is stopped: the phase is missed", story.settled_before)];
    }
    let is_well = match story.phase {
        Phase::Loading | Phase::Warming => answered == 0 && back == 0,
        Phase::Idle => answered > 0 && back == 0,
        Phase::MidBatch => answered > 0 && back > 0,
        Phase::LongBatch => answered == 0 && back > 0,
        Phase::Publishing => answered > 0,
        // What of it the broker still got, the broker alone knows.
        Phase::Stalled => true,
    };
    (!is_well).then(|| format!("it answers {answered} jobs and gives {back} back")).into_iter().collect()
}

/// What the probes showed.
fn seen(story: &Story) -> Vec<String> {
    let has = |seen: Seen| story.end.history.iter().any(|event| event.seen == seen);
    let is_ready = story.phase.is_ready();
    // A worker with nothing in hand is gone before anyone could ask it.
    let drains = matches!(story.phase, Phase::MidBatch | Phase::LongBatch | Phase::Publishing | Phase::Stalled);
    let rules = [
        (!has(Seen::Started), "its startup probe never succeeds"),
        (has(Seen::Condemned), "its liveness fails, a kubelet would restart it"),
        (is_ready && !has(Seen::Ready), "it is never ready"),
        (!is_ready && has(Seen::Ready), "it is ready before its model is"),
        (drains && !has(Seen::NotReady), "it drains and is still ready"),
    ];
    rules.into_iter().filter(|(is_broken, _)| *is_broken).map(|(_, rule)| rule.to_owned()).collect()
}
