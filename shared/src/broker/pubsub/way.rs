//! Google's clients, all to the same place and with the same credentials.
//!
//! In: an emulator's address, if there is one; else the credentials of the environment. Out: clients, each with a connection
//! of its own. Making one reaches nobody: the first call does.

use google_cloud_auth::credentials::{AccessTokenCredentials, Builder, Credentials, anonymous};
use google_cloud_gax::client_builder::Error;
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_pubsub::client::{BasePublisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::retry_policy::RetryableErrors;
use tokio::time::timeout;

use super::super::BrokerError;
use super::CALL;
use super::admin::Admin;
use super::fault;

/// How clients are made. Clones share their credentials.
#[derive(Debug, Clone)]
pub(super) struct Way {
    credentials: Credentials,
    /// Instead of the service's.
    endpoint: Option<String>,
}

impl Way {
    /// To an emulator, which asks for no credentials; or to the service, with those of the environment.
    ///
    /// # Errors
    /// `Refused` without credentials; `Unavailable` when they can't be had for now.
    pub(super) async fn find(emulator: Option<&str>) -> Result<Self, BrokerError> {
        let credentials = match emulator {
            Some(_) => anonymous::Builder::new().build(),
            None => found().await?.into(),
        };
        Ok(Self { credentials, endpoint: emulator.map(|host| format!("http://{host}")) })
    }

    /// Clients for topics and subscriptions.
    pub(super) async fn admin(&self) -> Result<Admin, BrokerError> {
        let (mut topics, mut subscriptions) = (TopicAdmin::builder(), SubscriptionAdmin::builder());
        if let Some(endpoint) = &self.endpoint {
            (topics, subscriptions) = (topics.with_endpoint(endpoint), subscriptions.with_endpoint(endpoint));
        }
        let topics = topics.with_credentials(self.credentials.clone()).build().await.map_err(|error| failed(&error))?;
        let subscriptions = subscriptions.with_credentials(self.credentials.clone()).build().await;
        Ok(Admin { topics, subscriptions: subscriptions.map_err(|error| failed(&error))? })
    }

    /// A client that publishes.
    pub(super) async fn publisher(&self) -> Result<BasePublisher, BrokerError> {
        let mut publisher = BasePublisher::builder().with_retry_policy(RetryableErrors.with_time_limit(CALL));
        if let Some(endpoint) = &self.endpoint {
            publisher = publisher.with_endpoint(endpoint);
        }
        publisher.with_credentials(self.credentials.clone()).build().await.map_err(|error| failed(&error))
    }

    /// A client that receives.
    pub(super) async fn subscriber(&self) -> Result<Subscriber, BrokerError> {
        let mut subscriber = Subscriber::builder();
        if let Some(endpoint) = &self.endpoint {
            subscriber = subscriber.with_endpoint(endpoint);
        }
        subscriber.with_credentials(self.credentials.clone()).build().await.map_err(|error| failed(&error))
    }
}

/// The credentials of the environment, tried: where there are none the library asks for those of a machine on Google
/// Cloud, and what fails then is each call.
async fn found() -> Result<AccessTokenCredentials, BrokerError> {
    let credentials = Builder::default().build_access_token_credentials();
    let credentials = credentials.map_err(|error| fault::no_credentials(&error.to_string()))?;
    match timeout(CALL, credentials.access_token()).await {
        Ok(Ok(_)) => Ok(credentials),
        Ok(Err(error)) if !error.is_transient() => Err(fault::no_credentials(&root_of(&error))),
        Ok(Err(error)) => Err(fault::credentials_out_of_reach(&root_of(&error))),
        Err(_) => Err(fault::credentials_out_of_reach(&format!("no answer within {} s", CALL.as_secs()))),
    }
}

/// The end of an error's chain: what comes before it says nothing that helps.
fn root_of(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string)
}

fn failed(error: &Error) -> BrokerError {
    BrokerError::Refused(format!("no client for Pub/Sub: {error}"))
}
