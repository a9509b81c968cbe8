//! Each promise, broken once.

use super::*;
use crate::drains::story::Replied;
use crate::kubelet::Event;

fn replied(job: usize) -> Replied {
    let worker = if job == 0 { FIRST } else { "second" };
    Replied { job, worker: worker.to_owned(), attempt: 1, status: Status::Succeeded, content: format!("text {job}") }
}

/// A drain in the middle of a batch, as it should be.
fn well() -> Story {
    let seen = [Seen::Started, Seen::Ready, Seen::Stopping, Seen::NotReady, Seen::Ended];
    let history = seen.into_iter().zip(1..).map(|(seen, at)| Event { at: Duration::from_millis(at), seen }).collect();
    let (took, word) = (Duration::from_secs(1), String::new());
    Story {
        broker: Kind::Sqlite,
        free_release: true,
        phase: Phase::MidBatch,
        terms: Terms::of_grace(Duration::from_secs(15)),
        jobs: Jobs { published: 3, replies: (0..3).map(replied).collect(), dead: false },
        end: End { how: How::Exited(0), took, word, history, lines: Vec::new() },
        given_back: 2,
        unsettled: 0,
        settled_before: 0,
    }
}

fn broken(change: impl Fn(&mut Story)) -> String {
    let mut story = well();
    change(&mut story);
    stop(&story).join("; ")
}

#[test]
fn a_drain_as_it_should_be_breaks_nothing() {
    assert_eq!(broken(|_| ()), "");
    // The same reply twice is what a broker may bring.
    assert_eq!(broken(|story| story.jobs.replies.push(replied(0))), "");
}

#[test]
fn each_broken_promise_is_told() {
    type Change = fn(&mut Story);
    let cases: [(Change, &str); 15] = [
        (|story| drop(story.jobs.replies.pop()), "job 2 is never answered"),
        (|story| story.jobs.replies[1].status = Status::Failed, "job 1 is answered failed: text 1"),
        (|story| story.jobs.replies.push(Replied { content: "x".into(), ..replied(1) }), "job 1 has two contents"),
        (|story| story.jobs.dead = true, "there are dead letters"),
        (|story| story.jobs.replies[2].attempt = 2, "1 attempts are spent"),
        (|story| story.unsettled = 3, "3 leases could not be settled"),
        (|story| story.end.how = How::Killed, "it ends killed after 1s of 15s"),
        (|story| story.end.how = How::Exited(70), "it ends 70"),
        (|story| story.end.word = "device lost".into(), "with the word \"device lost\""),
        (|story| story.end.took = Duration::from_secs(10), "with a drain limit of 10s"),
        (|story| story.phase = Phase::LongBatch, "with a drain limit of 10s"),
        (|story| story.given_back = 0, "answers 1 jobs and gives 0 back"),
        (|story| _ = story.end.history.remove(0), "its startup probe never succeeds"),
        (|story| _ = story.end.history.remove(3), "it drains and is still ready"),
        (|story| story.end.history[1].seen = Seen::Condemned, "a kubelet would restart it"),
    ];
    for (change, told) in cases {
        let broken = broken(change);
        assert!(broken.contains(told), "{told:?} is not in {broken:?}");
    }
}

#[test]
fn a_worker_that_takes_jobs_before_its_model_is_there_is_told() {
    let broken = broken(|story| story.phase = Phase::Loading);
    assert!(broken.contains("it answers 1 jobs") && broken.contains("ready before its model"), "{broken}");
}

#[test]
fn a_stalled_worker_may_be_killed_only_where_it_could_not_have_closed() {
    let stalled = |story: &mut Story| (story.phase, story.broker) = (Phase::Stalled, Kind::PubSub);
    let killed = |grace: u64| {
        broken(|story| {
            let grace = Duration::from_secs(grace);
            stalled(story);
            (story.terms, story.jobs.replies[0].attempt) = (Terms::of_grace(grace), 2);
            (story.end.how, story.end.took) = (How::Killed, grace);
        })
    };
    assert_eq!(killed(15), "");
    assert_eq!(killed(60), "it ends killed after 60s, not 53s");
    let late = broken(|story| {
        stalled(story);
        story.end.took = Duration::from_secs(19);
    });
    assert_eq!(late, "it ends 0 after 19s, not 18s");
}

#[test]
fn on_rabbitmq_the_server_may_count_one_attempt_of_a_job_and_no_more() {
    let attempt =
        |attempt: u32| broken(|story| (story.broker, story.jobs.replies[2].attempt) = (Kind::Rabbitmq, attempt));
    assert_eq!(attempt(2), "");
    assert_eq!(attempt(3), "a job is at attempt 3");
}

#[test]
fn a_stop_that_came_too_late_for_its_phase_is_told() {
    let broken = broken(|story| (story.phase, story.settled_before) = (Phase::Publishing, 3));
    assert_eq!(broken, "3 replies pass before it is stopped: the phase is missed");
}

#[test]
fn an_update_that_replaces_too_few_or_kills_is_told() {
    let Story { broker, free_release, terms, jobs, end, .. } = well();
    let whole = Update {
        broker,
        free_release,
        terms,
        updating: true,
        jobs,
        ends: vec![end.clone(); 3],
        took: Duration::from_secs(3),
        answered: 1,
        given_back: 2,
        unsettled: 0,
        latency_ms: Default::default(),
    };
    assert_eq!(update(&whole), Vec::<String>::new());
    assert_eq!(update(&Update { ends: vec![end.clone(); 2], ..whole.clone() }), ["2 workers are replaced, not 3"]);
    let killed = End { how: How::Killed, ..end };
    assert_eq!(update(&Update { ends: vec![killed; 3], ..whole }).len(), 3);
}
