//! Decides about a review by the rules, and writes its mark. I/O.
//!
//! The order is the promise: the mark is on the pod before the answer "allowed" is sent. The types enforce it, because
//! [`Admitted`] contains a [`Marked`].
//!
//! Every mark is a compare-and-swap, so of many reviews of one pod only one at a time can succeed. They wait for each
//! other here ([`Writers`]), and the one that has the turn writes for all that wait.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Resource as _;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    review::{Denial, Request},
    validate,
    writers::{Writer, Writers},
};
use crate::{
    api::{
        Context,
        persist::{is_of_a_start, is_of_a_webhook, persist},
        pods::{self, Marked, Pods, Recorded},
    },
    config::policy::{Attributes, Decision, Labels, NamespaceNeeded, Policy, Verdict},
    error::chain,
    mark::{Disposition, Interaction, Operation},
};

/// Reviews that are written together. All of them must be listed in the mark, which lists the latest ten.
const TOGETHER: usize = 10;
/// The pause after a conflict; it doubles with each further one, up to [`LONGEST_PAUSE`]. Another replica, or a kubelet,
/// wrote the pod in between.
const PAUSE: Duration = Duration::from_millis(5);
/// See [`PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// Decides and marks.
pub struct Marking {
    /// Reads and marks pods.
    pub pods: Pods,
    /// The configured rules.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The clock and the link to the API server.
    pub context: Context,
    /// The pods that are being written.
    pub writers: Writers<Waiting>,
}

/// Why an interaction is admitted.
#[derive(Debug)]
pub enum Admitted {
    /// The mark is on the pod.
    Marked(Written),
    /// Rules exempt every interaction.
    Exempt(Vec<Interaction>),
    /// A dry run, or a request that reaches no container.
    NothingToMark,
}

/// What one review has written.
#[derive(Debug)]
pub struct Written {
    /// The proof, shared by the reviews that were written together.
    pub marked: Arc<Marked>,
    /// The interactions of this review.
    pub recorded: Vec<Recorded>,
    /// Interactions of the same review that rules exempt.
    pub exempt: Vec<Interaction>,
}

/// Why an interaction is not admitted.
#[derive(Clone, Debug)]
pub enum Refused {
    /// By a rule, and who wanted to do what with which pod.
    Rule {
        /// What the user reads.
        denial: Denial,
        /// The interaction that was denied.
        interaction: Box<Interaction>,
        /// The pod.
        pod: Box<ObjectReference>,
    },
    /// By a check that the API server repeats after admission.
    Validation(Denial),
    /// The mark cannot be written, and would not be at another attempt either.
    Never(String),
    /// The mark was not written in time. Another attempt may succeed.
    Now(String),
}

impl From<pods::Error> for Refused {
    fn from(error: pods::Error) -> Self {
        match error {
            pods::Error::Stripped { .. } => Self::Never(format!(
                "{error}. Another admission plugin probably removed it: look for one that changes pods or pods/status \
                 among `kubectl get mutatingwebhookconfigurations,mutatingadmissionpolicies`"
            )),
            // The pod changed faster than it could be written, until the end.
            pods::Error::Conflict | pods::Error::Gone => Self::Now(chain(&error)),
            error if is_of_a_webhook(&error) => Self::Never(chain(&error)),
            error if error.is_temporary() || is_of_a_start(&error) => Self::Now(chain(&error)),
            error => Self::Never(chain(&error)),
        }
    }
}

/// A review that waits for its turn to be written.
pub struct Waiting {
    request: Arc<Request>,
    /// The labels of the pod's namespace, if the rules needed them.
    namespace: Option<Labels>,
    done: oneshot::Sender<Result<Admitted, Refused>>,
}

/// The decision of the rules about the interactions of one review.
#[derive(Default)]
struct Decided {
    to_mark: Vec<(Interaction, Disposition)>,
    exempt: Vec<Interaction>,
}

impl Marking {
    /// Admits a review, with its mark on the pod, or says why not. Ends at `until`, or soon after.
    ///
    /// # Errors
    /// Why the review is not admitted.
    pub async fn admit(&self, request: &Arc<Request>, until: Instant) -> Result<Admitted, Refused> {
        let Some(first) = request.acts.first() else { return Ok(Admitted::NothingToMark) };
        // Both at once: neither needs the other, and the user is waiting.
        let (authorized, pod) =
            tokio::join!(self.authorize(request, first.operation, until), self.read(request, until));
        authorized?;
        self.decide_and_mark(request, pod?, until).await
    }

    /// The same for a report, which the API server has authorized already.
    ///
    /// # Errors
    /// Why it is not on the pod.
    pub async fn record(&self, request: &Arc<Request>, until: Instant) -> Result<Admitted, Refused> {
        let pod = self.read(request, until).await?;
        self.decide_and_mark(request, pod, until).await
    }

    async fn decide_and_mark(&self, request: &Arc<Request>, pod: Pod, until: Instant) -> Result<Admitted, Refused> {
        // What needs no write needs no turn either.
        let mut namespace = None;
        let Decided { to_mark, exempt } = self.decide(request, &pod, &mut namespace, until).await?;
        if request.dry_run {
            return Ok(Admitted::NothingToMark);
        }
        if to_mark.is_empty() {
            return Ok(Admitted::Exempt(exempt));
        }
        let (done, answer) = oneshot::channel();
        let waiting = Waiting { request: request.clone(), namespace, done };
        Box::pin(self.in_turn(waiting, answer, pod, until)).await
    }

    async fn read(&self, request: &Request, until: Instant) -> Result<Pod, Refused> {
        let call = || self.pods.get(&request.namespace, &request.pod);
        match persist("get pods", &self.context.link, until, call).await {
            Err(pods::Error::Gone) => Err(Refused::Validation(validate::not_found(&request.pod))),
            read => Ok(read?),
        }
    }

    async fn authorize(&self, request: &Request, operation: Operation, until: Instant) -> Result<(), Refused> {
        let (verbs, subresource) = validate::needed(operation);
        for verb in verbs {
            let call = || self.pods.can_i(&request.user, verb, subresource, &request.namespace, &request.pod);
            if persist("create subjectaccessreviews", &self.context.link, until, call).await? {
                return Ok(());
            }
        }
        Err(Refused::Validation(validate::forbidden(request, operation)))
    }

    async fn read_namespace(&self, request: &Request, until: Instant) -> Result<Labels, Refused> {
        let call = || self.pods.namespace_labels(&request.namespace);
        match persist("get namespaces", &self.context.link, until, call).await {
            // A namespace is deleted after its pods.
            Err(pods::Error::Gone) => Err(Refused::Validation(validate::not_found(&request.pod))),
            read => Ok(read?),
        }
    }

    /// Waits until this review is written, by this task or by the one that has the turn.
    async fn in_turn(
        &self,
        waiting: Waiting,
        mut answer: oneshot::Receiver<Result<Admitted, Refused>>,
        pod: Pod,
        until: Instant,
    ) -> Result<Admitted, Refused> {
        let request = &waiting.request.clone();
        let writer = self.writers.of(&request.namespace, &request.pod);
        writer.wait(waiting, request.breaks_glass());
        let mut read = Some(pod);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return answer.unwrap_or_else(|_| Err(Refused::Now("another review of this pod failed".into())));
                }
                mut newest = writer.turn() => {
                    // The pod that the last turn wrote is newer than the one that was read before it.
                    let known = newest.take().or_else(|| read.take());
                    *newest = self.write(&writer, known, request, until).await;
                }
            }
        }
    }

    /// Writes the reviews that wait for this pod, as many as go together. Returns the pod as it is then.
    async fn write(
        &self,
        writer: &Writer<Waiting>,
        mut known: Option<Pod>,
        me: &Request,
        until: Instant,
    ) -> Option<Pod> {
        let mut batch = writer.take(TOGETHER);
        let mut pause = PAUSE;
        while !batch.is_empty() {
            let pod = match known.take() {
                Some(pod) => pod,
                None => match self.read(me, until).await {
                    Ok(pod) => pod,
                    Err(why) => {
                        refuse(batch, &why);
                        return None;
                    }
                },
            };
            let mut to_mark = Vec::new();
            let mut decided = VecDeque::new();
            for mut waiting in batch.drain(..) {
                match self.decide(&waiting.request, &pod, &mut waiting.namespace, until).await {
                    Err(why) => drop(waiting.done.send(Err(why))),
                    Ok(Decided { to_mark: none, exempt }) if none.is_empty() => {
                        drop(waiting.done.send(Ok(Admitted::Exempt(exempt))));
                    }
                    Ok(one) => {
                        to_mark.extend(one.to_mark.iter().cloned());
                        decided.push_back((waiting, one));
                    }
                }
            }
            if to_mark.is_empty() {
                return Some(pod);
            }
            match self.mark(&pod, to_mark, until).await {
                Ok(marked) => {
                    let marked = Arc::new(marked);
                    let mut recorded = marked.recorded.iter().cloned();
                    for (waiting, Decided { to_mark, exempt }) in decided {
                        let recorded: Vec<Recorded> = recorded.by_ref().take(to_mark.len()).collect();
                        if recorded.len() < to_mark.len() {
                            writer.wait(waiting, true);
                            continue;
                        }
                        let written = Written { marked: marked.clone(), recorded, exempt };
                        drop(waiting.done.send(Ok(Admitted::Marked(written))));
                    }
                    return Some(marked.pod.clone());
                }
                Err(pods::Error::Conflict | pods::Error::Gone) if Instant::now() + pause < until => {
                    batch = decided.into_iter().map(|(waiting, _)| waiting).collect();
                    sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    refuse(decided.into_iter().map(|(waiting, _)| waiting).collect(), &error.into());
                    return None;
                }
            }
        }
        known
    }

    /// Repeats the write if there is no answer. If it happened all the same, the next one is a conflict, and the review
    /// then finds itself on the pod.
    async fn mark(
        &self,
        pod: &Pod,
        to_mark: Vec<(Interaction, Disposition)>,
        until: Instant,
    ) -> Result<Marked, pods::Error> {
        persist("patch pods/status", &self.context.link, until, || self.pods.mark(pod, to_mark.clone())).await
    }

    /// Applies the rules to each interaction of the review with this pod. Reads the labels of the namespace if the rules
    /// need them: never for rules without a `namespaceSelector`, and once for a review.
    async fn decide(
        &self,
        request: &Request,
        pod: &Pod,
        namespace: &mut Option<Labels>,
        until: Instant,
    ) -> Result<Decided, Refused> {
        let policy = self.policy.borrow().clone();
        if let Ok(decided) = self.decide_by(&policy, request, pod, namespace.as_ref()) {
            return decided;
        }
        let labels = namespace.insert(self.read_namespace(request, until).await?);
        let decided = self.decide_by(&policy, request, pod, Some(labels));
        decided.unwrap_or_else(|NamespaceNeeded| Err(Refused::Now("the labels of the namespace are not known".into())))
    }

    fn decide_by(
        &self,
        policy: &Policy,
        request: &Request,
        pod: &Pod,
        namespace: Option<&Labels>,
    ) -> Result<Result<Decided, Refused>, NamespaceNeeded> {
        let mut decided = Decided::default();
        for act in &request.acts {
            let container = match validate::container(act, pod) {
                Ok(container) => container,
                Err(denial) => return Ok(Err(Refused::Validation(denial))),
            };
            let mut interaction = validate::interaction(request, act, container, self.context.clock.corrected());
            let it = Attributes { interaction: &interaction, user: &request.user, argv: &act.command, pod, namespace };
            let Decision { verdict, rule } = policy.decide(it)?;
            interaction.rule = rule;
            match verdict {
                Verdict::Exempt => decided.exempt.push(interaction),
                Verdict::Mark(disposition) => decided.to_mark.push((interaction, disposition)),
                Verdict::Deny { .. } if request.breaks_glass() => {
                    decided.to_mark.push((interaction, Disposition::Record));
                }
                Verdict::Deny { message } => {
                    let message = format!("rule {:?}: {message}", interaction.rule);
                    let denial = Denial { code: 403, reason: "Forbidden", message };
                    let (interaction, pod) = (Box::new(interaction), Box::new(pod.object_ref(&())));
                    return Ok(Err(Refused::Rule { denial, interaction, pod }));
                }
            }
        }
        Ok(Ok(decided))
    }
}

fn refuse(batch: VecDeque<Waiting>, why: &Refused) {
    for waiting in batch {
        drop(waiting.done.send(Err(why.clone())));
    }
}
