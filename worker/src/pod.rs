//! Tells Kubernetes what ending this worker's pod would cost, so that a scale-in ends the idle ones first.
//!
//! In: the pod's name, what is in flight. Out: the annotation `controller.kubernetes.io/pod-deletion-cost`, set by a PATCH on
//! the pod, with the service account that the pod runs under. An API server that refuses or is out of reach is nobody's
//! concern but the log's: then any pod may be the one that is ended, and drains.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost>

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Client};
use serde_json::json;

use crate::in_flight::InFlight;

/// How often it is looked whether the cost has changed: as often as Kubernetes scales, and no more, as each change is a write
/// to its store.
const EVERY: Duration = Duration::from_secs(15);

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cost is told anew when it differs by so much, twice the tokens a step; or when the worker has become idle or busy.
const STEPS: u32 = 2;

/// This worker's pod, and the way to its API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The namespace that it is in.
    pub namespace: String,
    /// The API server's address, `https://host:port`.
    pub server: String,
    /// The folder with the service account's `token` and the API server's `ca.crt`.
    pub account: PathBuf,
}

/// Why the cost could not be told.
#[derive(Debug, thiserror::Error)]
enum PodError {
    #[error("{}: {error}", path.display())]
    Account { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Call(#[from] reqwest::Error),
    #[error("{0}: the pod's service account needs the verb patch on pods")]
    Refused(reqwest::StatusCode),
    #[error("{0}")]
    Failed(reqwest::StatusCode),
}

impl Pod {
    /// Tells the cost whenever it has changed. Without a pod it waits for ever.
    pub async fn report(pod: Option<&Self>, in_flight: &InFlight) -> Infallible {
        let Some(pod) = pod else { std::future::pending().await };
        let (mut told, mut failing) = (None, false);
        loop {
            let cost = cost(in_flight.counts().tokens);
            if is_news(told, cost) {
                match pod.tell(cost).await {
                    Ok(()) => (told, failing) = (Some(cost), false),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(pod = pod.name, %error, "the pod's deletion cost can't be set; a scale-in may end a busy pod");
                        }
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn tell(&self, cost: u32) -> Result<(), PodError> {
        let Self { name, namespace, server, .. } = self;
        let token = self.read("token")?;
        let authority = Certificate::from_pem_bundle(self.read("ca.crt")?.as_bytes())?;
        // Made anew each time: calls are rare, and both files change while the pod runs.
        let client = Client::builder().tls_certs_only(authority).no_proxy().timeout(PATIENCE).build()?;
        let annotations = json!({ "controller.kubernetes.io/pod-deletion-cost": cost.to_string() });
        let status = client
            .patch(format!("{server}/api/v1/namespaces/{namespace}/pods/{name}"))
            .bearer_auth(token.trim())
            .header(CONTENT_TYPE, "application/merge-patch+json")
            .body(json!({ "metadata": { "annotations": annotations } }).to_string())
            .send()
            .await?
            .status();
        match status.as_u16() {
            200..300 => Ok(()),
            401 | 403 => Err(PodError::Refused(status)),
            _ => Err(PodError::Failed(status)),
        }
    }

    fn read(&self, file: &str) -> Result<String, PodError> {
        let path = self.account.join(file);
        std::fs::read_to_string(&path).map_err(|error| PodError::Account { path, error })
    }
}

/// 0 for an idle worker; one more for each doubling of the tokens in flight.
fn cost(tokens: usize) -> u32 {
    tokens.checked_ilog2().map_or(0, |doublings| doublings + 1)
}

fn is_news(told: Option<u32>, cost: u32) -> bool {
    told.is_none_or(|told| told.abs_diff(cost) >= STEPS || (told == 0) != (cost == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_worker_costs_nothing_and_more_work_never_less() {
        assert_eq!([0, 1, 2, 3, 4, 4096].map(cost), [0, 1, 2, 2, 3, 13]);
        assert!(cost(usize::MAX) < i32::MAX as u32, "Kubernetes takes 32 bits with a sign");
    }

    #[test]
    fn a_little_more_or_less_is_no_news() {
        assert!(is_news(None, 0));
        assert!(is_news(Some(0), 1) && is_news(Some(1), 0) && is_news(Some(10), 12));
        assert!(!is_news(Some(0), 0) && !is_news(Some(10), 11) && !is_news(Some(10), 9));
    }
}
