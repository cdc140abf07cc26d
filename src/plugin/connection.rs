//! kubectl's global flags, the client they lead to, and what is said when the API server says no or nothing.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Pod};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::output::Failure;
use crate::error::chain;

/// The flags that every kubectl command has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global flags")]
pub struct Global {
    /// The namespace; by default the one of the context.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Path of the kubeconfig file.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The cluster of the kubeconfig to use.
    #[arg(long, global = true)]
    pub cluster: Option<String>,
    /// The user of the kubeconfig to use.
    #[arg(long, global = true)]
    pub user: Option<String>,
    /// Address and port of the API server.
    #[arg(short, long, global = true)]
    pub server: Option<String>,
    /// Bearer token for the API server.
    #[arg(long, global = true)]
    pub token: Option<String>,
    /// Path of a client certificate, PEM.
    #[arg(long, global = true)]
    pub client_certificate: Option<PathBuf>,
    /// Path of the key of the client certificate, PEM.
    #[arg(long, global = true)]
    pub client_key: Option<PathBuf>,
    /// The name that the API server's certificate is checked for, instead of the host's.
    #[arg(long, global = true)]
    pub tls_server_name: Option<String>,
    /// Path of a file with the certificates to trust, PEM.
    #[arg(long, global = true)]
    pub certificate_authority: Option<PathBuf>,
    /// Do not check the API server's certificate. This makes the connection insecure.
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// User to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate; can be repeated.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_group: Vec<String>,
    /// UID to impersonate.
    #[arg(long = "as-uid", global = true, value_name = "UID")]
    pub impersonate_uid: Option<String>,
    /// How long to wait for one answer of the API server, for example 5s or 1m; 0 is for ever.
    #[arg(long, global = true, default_value = "30s", value_parser = timeout)]
    pub request_timeout: Timeout,
    /// The namespace that Pristine is installed in.
    #[arg(long, global = true, default_value = "pristine-system", value_name = "NAMESPACE")]
    pub pristine_namespace: String,
}

/// The wait for one answer; none is for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeout(Option<Duration>);

/// As kubectl has it: a duration, or seconds without a unit.
fn timeout(text: &str) -> Result<Timeout, String> {
    let duration = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => crate::duration::parse(text)?,
    };
    Ok(Timeout((!duration.is_zero()).then_some(duration)))
}

/// A way to the API server.
#[derive(Clone)]
pub struct Connection {
    /// For requests.
    pub client: Client,
    /// The namespace meant.
    pub namespace: String,
    /// Where Pristine is.
    pub pristine: String,
    url: String,
    timeout: Option<Duration>,
}

impl Connection {
    /// Follows the flags, the environment and the kubeconfig, as kubectl does.
    ///
    /// # Errors
    /// What is missing or cannot be read.
    pub async fn new(global: &Global) -> Result<Self, Failure> {
        let wrong =
            |error: &dyn std::error::Error| Failure::new(format!("cannot use the kubeconfig: {}", chain(error)));
        let kubeconfig = match &global.kubeconfig {
            Some(path) => Some(Kubeconfig::read_from(path).map_err(|error| wrong(&error))?),
            None => match Kubeconfig::read() {
                Ok(found) => Some(found),
                // In a pod there is none, and none is needed.
                Err(_) if std::env::var_os("KUBECONFIG").is_none() => None,
                Err(error) => return Err(wrong(&error)),
            },
        };
        let mut config = match kubeconfig {
            Some(mut kubeconfig) => {
                global.amend(&mut kubeconfig);
                let options = KubeConfigOptions {
                    context: global.context.clone(),
                    cluster: global.cluster.clone(),
                    user: global.user.clone(),
                };
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| wrong(&error))?
            }
            None => Config::infer().await.map_err(|error| wrong(&error))?,
        };
        let auth = &mut config.auth_info;
        auth.impersonate = global.impersonate.clone().or_else(|| auth.impersonate.take());
        auth.impersonate_uid = global.impersonate_uid.clone().or_else(|| auth.impersonate_uid.take());
        if !global.impersonate_group.is_empty() {
            auth.impersonate_groups = Some(global.impersonate_group.clone());
        }
        // A 429 to an eviction is an answer.
        config.default_retry = false;
        // Ours is the timeout that is told of; this one only ends what nobody waits for any more.
        config.connect_timeout = global.request_timeout.0.map(|limit| limit * 2).or(config.connect_timeout);
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| wrong(&error))?;
        let pristine = global.pristine_namespace.clone();
        Ok(Self { client, namespace, pristine, url, timeout: global.request_timeout.0 })
    }

    /// One request, for at most the timeout. `what` was tried, as in "list pods".
    ///
    /// # Errors
    /// What the API server says, in kubectl's words; or that it did not answer.
    pub async fn call<T>(&self, what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        self.ask(what, request).await?.map_err(|error| self.explain(what, &error))
    }

    /// The same, for a caller that reads the API server's refusal.
    ///
    /// # Errors
    /// That the API server did not answer in time.
    pub async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, Failure> {
        let Some(limit) = self.timeout else { return Ok(request.await) };
        tokio::time::timeout(limit, request).await.map_err(|_| {
            Failure::new(format!("cannot {what}: no answer from {} within {limit:?} (--request-timeout)", self.url))
        })
    }

    /// As kubectl would say it.
    #[must_use]
    pub fn explain(&self, what: &str, error: &kube::Error) -> Failure {
        match error {
            // Names verb, resource and namespace by itself, if it is for want of a permission.
            kube::Error::Api(status) => {
                let message = format!("Error from server ({}): {}", status.reason, status.message);
                Failure { code: status.code, message }
            }
            error => {
                let text = chain(error);
                let text = text.strip_prefix("ServiceError: ").unwrap_or(&text);
                Failure::new(format!("cannot {what}: {}: {text}", self.url))
            }
        }
    }

    /// The pods of the namespace meant.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pod of this name, with or without `pod/` before it.
    ///
    /// # Errors
    /// That there is none, or what the API server says.
    pub async fn pod(&self, name: &str) -> Result<Pod, Failure> {
        let name = ["pod/", "pods/", "po/"].iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name);
        self.call("get pods", self.pods().get(name)).await
    }

    /// What is said about a pod that carries no mark.
    #[must_use]
    pub fn unmarked(&self, name: &str) -> Failure {
        Failure::new(format!("nobody has interacted with pod {name:?} in namespace {:?}", self.namespace))
    }

    /// Who the API server takes us for.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn whoami(&self) -> Result<String, Failure> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = self.call("create selfsubjectreviews", api.create(&params, &SelfSubjectReview::default())).await?;
        let user = answer.status.and_then(|status| status.user_info).and_then(|user| user.username);
        user.ok_or_else(|| Failure::new("the API server does not say who we are".to_owned()))
    }
}

impl Global {
    /// Puts what was typed over what the file says.
    fn amend(&self, kubeconfig: &mut Kubeconfig) {
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.tls_server_name = self.tls_server_name.clone().or_else(|| cluster.tls_server_name.take());
            cluster.server = self.server.clone().or_else(|| cluster.server.take());
            if let Some(path) = &self.certificate_authority {
                cluster.certificate_authority_data = None;
                cluster.certificate_authority = Some(path.display().to_string());
            }
            if self.insecure_skip_tls_verify {
                cluster.insecure_skip_tls_verify = Some(true);
            }
        }
        let path = |path: &PathBuf| Some(path.display().to_string());
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            if let Some(token) = &self.token {
                user.token = Some(token.clone().into());
            }
            if let Some(certificate) = &self.client_certificate {
                (user.client_certificate, user.client_certificate_data) = (path(certificate), None);
            }
            if let Some(key) = &self.client_key {
                (user.client_key, user.client_key_data) = (path(key), None);
            }
        }
    }
}
