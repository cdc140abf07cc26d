//! Lists the pods of a namespace in pages.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use super::{Error, Pods};

/// Pods of one page: some megabytes.
const PAGE: u32 = 500;

impl Pods {
    /// Lists one page of the pods of a namespace: the first, or the one that the last answer named. Returns the name of
    /// the next page too, if there is one.
    ///
    /// # Errors
    /// The error of the API server. If the page has expired, the list must begin again.
    pub async fn page(&self, namespace: &str, page: Option<String>) -> Result<(Vec<Pod>, Option<String>), Error> {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = page;
        let found = self.api(namespace).list(&params).await.map_err(Error::of("list pods"))?;
        Ok((found.items, found.metadata.continue_.filter(|next| !next.is_empty())))
    }
}
