//! Making, finding and removing topics and subscriptions.
//!
//! In: places, and how their subscriptions should be. Out: the service's word that they are there. These calls are HTTP and
//! are tried once: who asks tries again.

use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::client::{SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::model::Subscription;
use tokio::time::timeout;

use super::super::BrokerError;
use super::CALL;
use super::fault::{self, Action};
use super::place::Place;

/// The way to topics and subscriptions.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    pub(super) topics: TopicAdmin,
    pub(super) subscriptions: SubscriptionAdmin,
}

impl Admin {
    /// The subscription of a place, as it is.
    pub(super) async fn find(&self, place: &Place) -> Result<Subscription, BrokerError> {
        let call = self.subscriptions.get_subscription().set_subscription(&place.subscription).send();
        answered(call).await?.map_err(|error| fault::of(place, Action::Look, &error))
    }

    /// Whether the subscription of a place is there.
    pub(super) async fn look_for(&self, place: &Place) -> Result<(), BrokerError> {
        self.find(place).await.map(drop)
    }

    /// Makes the topic of a place; one that is there stays as it is.
    pub(super) async fn make_topic(&self, place: &Place) -> Result<(), BrokerError> {
        made(place, answered(self.topics.create_topic().set_name(&place.topic).send()).await?.map(drop))
    }

    /// Makes a subscription; one that is there stays as it is.
    ///
    /// # Errors
    /// `UnknownQueue` without its topic.
    pub(super) async fn make_subscription(&self, place: &Place, wanted: Subscription) -> Result<(), BrokerError> {
        let call = self.subscriptions.create_subscription().with_request(wanted).send();
        made(place, answered(call).await?.map(drop))
    }

    /// Changes the named fields of a subscription to what they are in `wanted`.
    pub(super) async fn change(
        &self,
        place: &Place,
        wanted: Subscription,
        fields: Vec<String>,
    ) -> Result<(), BrokerError> {
        let mut request = google_cloud_pubsub::model::UpdateSubscriptionRequest::new().set_subscription(wanted);
        request.update_mask.get_or_insert_default().paths = fields;
        let call = self.subscriptions.update_subscription().with_request(request).send();
        answered(call).await?.map(drop).map_err(|error| fault::of(place, Action::Manage, &error))
    }

    /// Removes the subscription of a place; one that is not there is no error.
    pub(super) async fn remove_subscription(&self, place: &Place) -> Result<(), BrokerError> {
        let call = self.subscriptions.delete_subscription().set_subscription(&place.subscription).send();
        removed(place, answered(call).await?)
    }

    /// Removes the topic of a place; one that is not there is no error.
    pub(super) async fn remove_topic(&self, place: &Place) -> Result<(), BrokerError> {
        removed(place, answered(self.topics.delete_topic().set_topic(&place.topic).send()).await?)
    }
}

type Called = Result<(), google_cloud_pubsub::Error>;

fn made(place: &Place, called: Called) -> Result<(), BrokerError> {
    match called {
        Err(error) if fault::code(&error) == Some(Code::AlreadyExists) => Ok(()),
        called => called.map_err(|error| fault::of(place, Action::Manage, &error)),
    }
}

fn removed(place: &Place, called: Called) -> Result<(), BrokerError> {
    match called {
        Err(error) if fault::code(&error) == Some(Code::NotFound) => Ok(()),
        called => called.map_err(|error| fault::of(place, Action::Manage, &error)),
    }
}

async fn answered<T>(call: impl Future<Output = T>) -> Result<T, BrokerError> {
    let late = |_| BrokerError::Unavailable(format!("no answer within {} s", CALL.as_secs()));
    timeout(CALL, call).await.map_err(late)
}
