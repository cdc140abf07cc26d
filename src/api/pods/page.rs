//! Lists the pods of a namespace in pages.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource as _,
    api::{ListParams, ObjectList, ObjectMeta, PartialObjectMeta},
    core::Request,
};
use serde::de::DeserializeOwned;

use super::{Error, Pods};

/// Pods of one page: one or two megabytes of metadata.
const PAGE: u32 = 500;

impl Pods {
    /// Lists one page of the pods of a namespace, with their metadata alone: the first, or the one that the last answer
    /// named. Returns the name of the next page too, if there is one.
    ///
    /// # Errors
    /// The error of the API server. If the page has expired, the list must begin again.
    pub async fn page(
        &self,
        namespace: &str,
        page: Option<String>,
    ) -> Result<(Vec<ObjectMeta>, Option<String>), Error> {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = page;
        let request = Request::new(Pod::url_path(&(), Some(namespace))).list_metadata(&params);
        let (found, next) = self.list_page::<PartialObjectMeta<Pod>>(request).await?;
        Ok((found.into_iter().map(|pod| pod.metadata).collect(), next))
    }

    /// Lists a page with these parameters, of each pod only the fields that `P` has.
    pub(in crate::api) async fn page_of<P>(
        &self,
        namespace: &str,
        params: &ListParams,
    ) -> Result<(Vec<P>, Option<String>), Error>
    where
        P: Clone + DeserializeOwned,
    {
        self.list_page(Request::new(Pod::url_path(&(), Some(namespace))).list(params)).await
    }

    async fn list_page<P>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(Vec<P>, Option<String>), Error>
    where
        P: Clone + DeserializeOwned,
    {
        let action = "list pods";
        let request = request.map_err(kube::Error::BuildRequest).map_err(Error::of(action))?;
        let found: ObjectList<P> = self.client.request(request).await.map_err(Error::of(action))?;
        Ok((found.items, found.metadata.continue_.filter(|next| !next.is_empty())))
    }
}
