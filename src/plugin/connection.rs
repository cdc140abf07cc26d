//! kubectl's global flags, the client that they configure, and the API server's errors in kubectl's words.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, UserInfo},
    core::v1::Pod,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::output::Failure;
use crate::{api::REPLICAS, error::chain};

/// The flags that every kubectl command has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global flags")]
pub struct Global {
    /// The namespace scope for this request; by default the namespace of the context.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Path to the kubeconfig file.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The name of the kubeconfig context to use.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The name of the kubeconfig cluster to use.
    #[arg(long, global = true)]
    pub cluster: Option<String>,
    /// The name of the kubeconfig user to use.
    #[arg(long, global = true)]
    pub user: Option<String>,
    /// The address and port of the Kubernetes API server.
    #[arg(short, long, global = true)]
    pub server: Option<String>,
    /// Bearer token for authentication to the API server.
    #[arg(long, global = true)]
    pub token: Option<String>,
    /// Path to a client certificate file for TLS, in PEM.
    #[arg(long, global = true)]
    pub client_certificate: Option<PathBuf>,
    /// Path to a client key file for TLS, in PEM.
    #[arg(long, global = true)]
    pub client_key: Option<PathBuf>,
    /// Server name to use for server certificate validation; by default the hostname used to contact the server.
    #[arg(long, global = true)]
    pub tls_server_name: Option<String>,
    /// Path to a file with the certificates of the certificate authority, in PEM.
    #[arg(long, global = true)]
    pub certificate_authority: Option<PathBuf>,
    /// Do not check the server's certificate for validity. This makes your HTTPS connections insecure.
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// Username to impersonate for the operation.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate for the operation; repeat the flag to specify multiple groups.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_group: Vec<String>,
    /// UID to impersonate for the operation.
    #[arg(long = "as-uid", global = true, value_name = "UID")]
    pub impersonate_uid: Option<String>,
    /// How long to wait before giving up on a single server request, for example 5s or 1m; 0 means no timeout.
    #[arg(long, global = true, default_value = "30s", value_parser = timeout, value_name = "DURATION")]
    pub request_timeout: Timeout,
    /// The namespace that Pristine is installed in.
    #[arg(long, global = true, default_value = "pristine-system", value_name = "NAMESPACE")]
    pub pristine_namespace: String,
}

/// `--request-timeout`; none means no timeout.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeout(Option<Duration>);

/// Reads it as kubectl does: a duration, or seconds without a unit.
fn timeout(text: &str) -> Result<Timeout, String> {
    let duration = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => crate::duration::parse(text)?,
    };
    Ok(Timeout((!duration.is_zero()).then_some(duration)))
}

/// The client for the API server, and the namespaces in use.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The namespace of the pods that the command is about.
    pub namespace: String,
    /// The namespace that Pristine is installed in.
    pub pristine: String,
    url: String,
    timeout: Option<Duration>,
}

impl Connection {
    /// Reads the flags, the environment and the kubeconfig, as kubectl does.
    ///
    /// # Errors
    /// If the kubeconfig is missing, cannot be read, or is invalid.
    pub async fn new(global: &Global) -> Result<Self, Failure> {
        let invalid = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(format!("cannot use the kubeconfig: {}", chain(error)))
        };
        let kubeconfig = match &global.kubeconfig {
            Some(path) => Some(Kubeconfig::read_from(path).map_err(|error| invalid(&error))?),
            None => match Kubeconfig::read() {
                Ok(found) => Some(found),
                // A pod has no kubeconfig and needs none: it uses its ServiceAccount.
                Err(_) if std::env::var_os("KUBECONFIG").is_none() => None,
                Err(error) => return Err(invalid(&error)),
            },
        };
        let mut config = match kubeconfig {
            Some(mut kubeconfig) => {
                global.apply(&mut kubeconfig);
                let options = KubeConfigOptions {
                    context: global.context.clone(),
                    cluster: global.cluster.clone(),
                    user: global.user.clone(),
                };
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| invalid(&error))?
            }
            None => Config::infer().await.map_err(|error| invalid(&error))?,
        };
        let auth = &mut config.auth_info;
        auth.impersonate = global.impersonate.clone().or_else(|| auth.impersonate.take());
        auth.impersonate_uid = global.impersonate_uid.clone().or_else(|| auth.impersonate_uid.take());
        if !global.impersonate_group.is_empty() {
            auth.impersonate_groups = Some(global.impersonate_group.clone());
        }
        // A 429 to an eviction is an answer, and not a reason to retry.
        config.default_retry = false;
        // `answer` enforces the timeout and names the flag. This one ends only connections that the command no longer
        // waits for.
        config.connect_timeout = global.request_timeout.0.map(|limit| limit * 2).or(config.connect_timeout);
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| invalid(&error))?;
        let pristine = global.pristine_namespace.clone();
        Ok(Self { client, namespace, pristine, url, timeout: global.request_timeout.0 })
    }

    /// Sends one request and waits for at most the timeout. `action` is what the request does, as in "list pods".
    ///
    /// # Errors
    /// The answer of the API server in kubectl's words, or that it did not answer in time.
    pub async fn call<T>(&self, action: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        self.answer(action, request).await?.map_err(|error| self.explain(action, &error))
    }

    /// The same, for a caller that reads the API server's error itself.
    ///
    /// # Errors
    /// If the API server did not answer in time.
    pub async fn answer<T>(
        &self,
        action: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, Failure> {
        let Some(limit) = self.timeout else { return Ok(request.await) };
        tokio::time::timeout(limit, request).await.map_err(|_| {
            Failure::new(format!("cannot {action}: no answer from {} within {limit:?} (--request-timeout)", self.url))
        })
    }

    /// The error in kubectl's words.
    #[must_use]
    pub fn explain(&self, action: &str, error: &kube::Error) -> Failure {
        match error {
            // If a permission is missing, the message itself names verb, resource and namespace.
            kube::Error::Api(status) => {
                let message = format!("Error from server ({}): {}", status.reason, status.message);
                Failure { code: status.code, message }
            }
            error => {
                let text = chain(error);
                let text = text.strip_prefix("ServiceError: ").unwrap_or(&text);
                Failure::new(format!("cannot {action}: {}: {text}", self.url))
            }
        }
    }

    /// The pods of the namespace.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pods of Pristine's replicas.
    ///
    /// # Errors
    /// The answer of the API server.
    pub async fn replicas(&self) -> Result<Vec<Pod>, Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.pristine);
        Ok(self.call("list pods", api.list(&ListParams::default().labels(REPLICAS))).await?.items)
    }

    /// The pod of this name, with or without the prefix `pod/`.
    ///
    /// # Errors
    /// The answer of the API server, for example that the pod does not exist.
    pub async fn pod(&self, name: &str) -> Result<Pod, Failure> {
        self.call("get pods", self.pods().get(pod_name(name))).await
    }

    /// The failure for a pod without a mark.
    #[must_use]
    pub fn unmarked(&self, name: &str) -> Failure {
        Failure::new(format!("no interaction is recorded on pod {name:?} in namespace {:?}", self.namespace))
    }

    /// The user that the API server authenticates this client as.
    ///
    /// # Errors
    /// The answer of the API server.
    pub async fn whoami(&self) -> Result<String, Failure> {
        self.user_info().await.map(|user| user.username.unwrap_or_default())
    }

    /// The same with groups.
    ///
    /// # Errors
    /// The answer of the API server.
    pub async fn user_info(&self) -> Result<UserInfo, Failure> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = self.call("create selfsubjectreviews", api.create(&params, &SelfSubjectReview::default())).await?;
        let user = answer.status.and_then(|status| status.user_info);
        user.filter(|user| user.username.is_some()).ok_or_else(|| {
            Failure::new("cannot read the user name: the API server's SelfSubjectReview has none".to_owned())
        })
    }
}

/// The name of a pod that was typed with or without its kind.
#[must_use]
pub fn pod_name(typed: &str) -> &str {
    ["pod/", "pods/", "po/"].iter().find_map(|kind| typed.strip_prefix(kind)).unwrap_or(typed)
}

impl Global {
    /// The same flags for a kubectl that this command runs.
    #[must_use]
    pub fn for_kubectl(&self) -> Vec<OsString> {
        let texts = [
            ("namespace", &self.namespace),
            ("context", &self.context),
            ("cluster", &self.cluster),
            ("user", &self.user),
            ("server", &self.server),
            ("token", &self.token),
            ("tls-server-name", &self.tls_server_name),
            ("as", &self.impersonate),
            ("as-uid", &self.impersonate_uid),
        ];
        let paths = [
            ("kubeconfig", &self.kubeconfig),
            ("client-certificate", &self.client_certificate),
            ("client-key", &self.client_key),
            ("certificate-authority", &self.certificate_authority),
        ];
        let flag = |name: &str, value: &OsStr| {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            flag
        };
        let texts = texts.into_iter().filter_map(|(name, value)| Some(flag(name, value.as_ref()?.as_ref())));
        let paths = paths.into_iter().filter_map(|(name, value)| Some(flag(name, value.as_ref()?.as_os_str())));
        let groups = self.impersonate_group.iter().map(|group| flag("as-group", group.as_ref()));
        let insecure = self.insecure_skip_tls_verify.then(|| "--insecure-skip-tls-verify".into());
        texts.chain(paths).chain(groups).chain(insecure).collect()
    }

    /// Overrides the kubeconfig with the flags.
    fn apply(&self, kubeconfig: &mut Kubeconfig) {
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
