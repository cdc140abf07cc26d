//! One call to the API server with a time limit, and the errors that the writer of a compare-and-swap distinguishes.

use std::time::Duration;

use tokio::time::timeout;

/// For one call. Other webhooks, which may be slow, review writes.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another client, most often another replica, wrote first. Read again.
    #[error("another client changed the object first")]
    Conflict,
    /// The API server rejected the call. If a permission is missing, its answer names the verb and the resource.
    #[error("cannot {0}")]
    Api(&'static str, #[source] Box<kube::Error>),
    /// The API server did not answer.
    #[error("cannot {0}: no answer within {limit:?}", limit = CALL_TIMEOUT)]
    Timeout(&'static str),
}

/// Waits for the answer to `request`, which is to do this `action`.
///
/// # Errors
/// The API server's answer, or that it did not answer.
pub async fn call<T>(action: &'static str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Error::Conflict),
        Ok(Err(error)) => Err(Error::Api(action, Box::new(error))),
        Err(_) => Err(Error::Timeout(action)),
    }
}
