//! Where a queue is on Pub/Sub: its topic, its subscription, and which of the topic's messages are its own.
//!
//! In: a queue's name. Out: a [`Place`]. A queue is a topic with a subscription of the same name, but for two: the jobs'
//! subscription may have another name, and all submissions' routes share one topic, where each has a subscription of its
//! own. Pub/Sub filters those by attribute; its emulator accepts filters and ignores them, so we filter as well. Pure.

use super::super::{Attributes, QueueNames};
use super::address::PubSubUrl;
use crate::job::attribute;

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its name, as the rest of the program knows it.
    pub(super) queue: String,
    /// `projects/P/topics/T`.
    pub(super) topic: String,
    /// `projects/P/subscriptions/S`.
    pub(super) subscription: String,
    /// What is its own.
    pub(super) share: Share,
}

/// Which of a topic's messages are one queue's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Share {
    /// All.
    Whole,
    /// The replies to one submission.
    Submission(String),
    /// The replies to no submission.
    NoSubmission,
}

impl Place {
    /// The place of `queue`, for who came by `url`.
    pub(super) fn of(url: &PubSubUrl, queue: &str) -> Self {
        let names = QueueNames::new(&*url.topic);
        let results = names.results();
        let (topic, share) = match submission(&names, queue) {
            Some(submission) => (&*results, Share::Submission(submission.to_owned())),
            None if queue == results => (queue, Share::NoSubmission),
            None => (queue, Share::Whole),
        };
        let subscription = if queue == url.topic { &url.subscription } else { queue };
        Self {
            queue: queue.to_owned(),
            topic: format!("projects/{}/topics/{topic}", url.project),
            subscription: format!("projects/{}/subscriptions/{subscription}", url.project),
            share,
        }
    }

    /// Whether no other queue has the same topic.
    pub(super) fn is_alone(&self) -> bool {
        !matches!(self.share, Share::Submission(_))
    }
}

/// The submission whose route it is. Not the dead letters of a route: they would be on the results' topic, unseen.
fn submission<'a>(names: &QueueNames, queue: &'a str) -> Option<&'a str> {
    let submission = queue.strip_prefix(&names.submission(""))?;
    (!submission.is_empty() && !submission.ends_with(".dead")).then_some(submission)
}

impl Share {
    /// As Pub/Sub's filters say it: <https://cloud.google.com/pubsub/docs/subscription-message-filter>.
    pub(super) fn filter(&self) -> String {
        match self {
            Self::Whole => String::new(),
            Self::Submission(submission) => format!("attributes.{} = \"{submission}\"", attribute::SUBMISSION),
            Self::NoSubmission => format!("NOT attributes:{}", attribute::SUBMISSION),
        }
    }

    /// Whether a message is among them.
    pub(super) fn has(&self, attributes: &Attributes) -> bool {
        let named = attributes.get(attribute::SUBMISSION);
        match self {
            Self::Whole => true,
            Self::Submission(submission) => named == Some(submission),
            Self::NoSubmission => named.is_none(),
        }
    }

    /// Makes a message one of them.
    pub(super) fn claim(&self, attributes: &mut Attributes) {
        if let Self::Submission(submission) = self {
            attributes.insert(attribute::SUBMISSION.to_owned(), submission.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(queue: &str) -> (String, String, Share) {
        let option = ("subscription".to_owned(), "fast".to_owned());
        let url = PubSubUrl::parse("//p/jobs", &[option]).expect("a good address");
        let Place { topic, subscription, share, .. } = Place::of(&url, queue);
        let last = |path: String| path.rsplit('/').next().expect("a path has a last part").to_owned();
        (last(topic), last(subscription), share)
    }

    #[test]
    fn every_queue_has_its_place() {
        for (queue, topic, subscription, share) in [
            ("jobs", "jobs", "fast", Share::Whole),
            ("jobs.shards", "jobs.shards", "jobs.shards", Share::Whole),
            ("jobs.dead", "jobs.dead", "jobs.dead", Share::Whole),
            ("jobs.results", "jobs.results", "jobs.results", Share::NoSubmission),
            ("jobs.results.s1", "jobs.results", "jobs.results.s1", Share::Submission("s1".to_owned())),
            ("jobs.results.s1.dead", "jobs.results.s1.dead", "jobs.results.s1.dead", Share::Whole),
            ("other", "other", "other", Share::Whole),
        ] {
            assert_eq!(place(queue), (topic.to_owned(), subscription.to_owned(), share));
        }
    }

    #[test]
    fn a_route_has_its_own_messages_only() {
        let named = |submission: &str| Attributes::from([(attribute::SUBMISSION.to_owned(), submission.to_owned())]);
        let route = Share::Submission("s1".to_owned());
        assert_eq!(route.filter(), "attributes.inferq-submission = \"s1\"");
        assert_eq!(Share::NoSubmission.filter(), "NOT attributes:inferq-submission");
        for (attributes, own, no_ones) in
            [(named("s1"), true, false), (named("s2"), false, false), (Attributes::new(), false, true)]
        {
            assert_eq!((route.has(&attributes), Share::NoSubmission.has(&attributes)), (own, no_ones));
            assert!(Share::Whole.has(&attributes));
        }
        let mut attributes = named("s2");
        route.claim(&mut attributes);
        assert!(route.has(&attributes));
    }
}
