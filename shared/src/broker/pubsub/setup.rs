//! What `inferq setup` does over Pub/Sub: makes what is absent, says where what exists differs, and what has to be granted.
//!
//! In: places and what each is for. Out: topics and subscriptions, or the differences. It removes nothing.

use super::super::BrokerError;
use super::admin::Admin;
use super::place::Place;
use super::plan::{self, Difference, Purpose};

/// One queue to be set up.
pub(super) struct Wanted {
    pub(super) place: Place,
    pub(super) purpose: Purpose,
    /// Whether acks are answered stays as it is.
    pub(super) keep_exactly_once: bool,
}

/// Makes the queues that are absent; with `update`, changes what differs and can be changed.
///
/// # Errors
/// `Refused` with what still differs.
pub(super) async fn set_up(admin: &Admin, wanted: Vec<Wanted>, update: bool) -> Result<(), BrokerError> {
    let mut report = String::new();
    for wanted in wanted {
        let left = set_up_one(admin, &wanted, update).await?;
        if !left.is_empty() {
            let subscription = &wanted.place.subscription;
            let lines: Vec<_> = left.iter().map(ToString::to_string).collect();
            report += &format!("{subscription} is not as setup makes it:\n{}\n", lines.join("\n"));
        }
    }
    if report.is_empty() {
        return Ok(());
    }
    let way = if update { "" } else { "\nsetup --update changes what Pub/Sub can change" };
    Err(BrokerError::Refused(format!("{}{way}", report.trim_end())))
}

/// What still differs of one queue.
async fn set_up_one(admin: &Admin, wanted: &Wanted, update: bool) -> Result<Vec<Difference>, BrokerError> {
    let Wanted { place, purpose, .. } = wanted;
    let exists = match admin.find(place).await {
        Err(BrokerError::UnknownQueue(_)) => {
            admin.make_topic(place).await?;
            admin.make_subscription(place, plan::wanted(place, purpose)).await?;
            return Ok(Vec::new());
        }
        exists => exists?,
    };
    let mut planned = plan::wanted(place, purpose);
    if wanted.keep_exactly_once {
        planned.enable_exactly_once_delivery = exists.enable_exactly_once_delivery;
    }
    let differing = plan::differences(&exists, &planned);
    let (can, cannot): (Vec<_>, Vec<_>) = differing.into_iter().partition(|difference| difference.can_change);
    if !update || can.is_empty() {
        return Ok(can.into_iter().chain(cannot).collect());
    }
    let fields = can.into_iter().map(|difference| difference.field.to_owned()).collect();
    admin.change(place, planned, fields).await?;
    Ok(cannot)
}

/// The commands that let Pub/Sub itself move to the dead letters what was delivered too often: its own account publishes
/// there, and acks at the subscriptions. <https://cloud.google.com/pubsub/docs/handling-failures#grant_forwarding_permissions>.
pub(super) fn grants(project: &str, dead_topic: &str, subscriptions: &[String]) -> Vec<String> {
    let number = format!("$(gcloud projects describe {project} --format='value(projectNumber)')");
    let binding = |kind: &str, path: &str, role: &str| {
        let member = format!("--member=\"serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com\"");
        format!("gcloud pubsub {kind} add-iam-policy-binding {path} {member} --role=roles/pubsub.{role}")
    };
    let topic = binding("topics", dead_topic, "publisher");
    let subscriptions = subscriptions.iter().map(|path| binding("subscriptions", path, "subscriber"));
    std::iter::once(topic).chain(subscriptions).collect()
}
