//! Takes deadlines off a pod whose machines are only recorded for a day.

use super::{Error, Pods, identity};
use crate::mark::{Mark, Status};
use k8s_openapi::api::core::v1::Pod;

impl Pods {
    /// Writes this mark and this status on the pod, as it was read. The mark has the same interactions as the one on the
    /// pod, and fewer deadlines.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again: another interaction may have got a deadline meanwhile.
    pub async fn spare(&self, pod: &Pod, mark: &Mark, status: &Status, message: &str) -> Result<(), Error> {
        let (namespace, name, _, version) = identity(pod)?;
        let patch = mark.patch_with(version, false, status, message);
        self.patch_status(namespace, name, &patch).await.map(drop)
    }
}
