use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::api::webhook::path::Key;

/// An API server that knows one Secret, with this UID, and no webhook configuration.
fn objects(uid: Option<&'static str>) -> Objects {
    let service = tower::service_fn(move |request: Request<Body>| async move {
        let (is_create, path) = (request.method() == http::Method::POST, request.uri().path());
        let secret = |uid: &str| json!({"kind": "Secret", "metadata": {"name": "s", "uid": uid}});
        let (code, body): (u16, Value) = match (path.rsplit('/').nth(1), uid) {
            _ if is_create => (201, secret("created")),
            (Some("secrets"), Some(uid)) => (200, secret(uid)),
            (Some("namespaces"), _) => (200, json!({"kind": "Namespace", "metadata": {"name": "n", "uid": "u"}})),
            _ => {
                (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "", "status": "Failure"}))
            }
        };
        let response = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
        Ok::<_, std::convert::Infallible>(response.unwrap())
    });
    let names = ["n", "s", "p", "c"].map(str::to_owned);
    let [namespace, secret, service_name, configuration] = names;
    let names = Names { namespace, service: service_name, configuration };
    let client = Client::new(service, "n");
    Objects::new(client.clone(), secret, Writer::new(client, names), watch::channel(Seen::default()).1)
}

fn store() -> Store {
    let life = std::time::Duration::from_secs(3600);
    let (active, _) = super::super::ca::Ca::create(1, &[], life, jiff::Timestamp::UNIX_EPOCH, None).unwrap();
    Store::first(active, Key::new([7; 32]))
}

#[tokio::test]
async fn the_reference_to_the_secret_has_the_uid_that_was_read_or_created_last() {
    let known = objects(Some("old"));
    assert_eq!(known.secret_reference().uid, None);
    known.read().await.unwrap();
    assert_eq!(known.secret_reference().uid.as_deref(), Some("old"));

    let absent = objects(None);
    let live = absent.read().await.unwrap();
    assert_eq!(absent.secret_reference().uid, None);
    absent.write(&store(), live).await.unwrap();
    assert_eq!(absent.secret_reference().uid.as_deref(), Some("created"));
}

fn live(immutable: Option<bool>, generation: &str) -> Live {
    let annotations = Some([(GENERATION.to_owned(), generation.to_owned())].into());
    let names = Names {
        namespace: "pristine-system".to_owned(),
        service: "pristine".to_owned(),
        configuration: "pristine".to_owned(),
    };
    Live {
        secret: Some(Secret { immutable, ..Secret::default() }),
        configuration: Some(ValidatingWebhookConfiguration {
            metadata: ObjectMeta { annotations, ..ObjectMeta::default() },
            ..ValidatingWebhookConfiguration::default()
        }),
        namespace: Namespace::default(),
        secret_name: "pristine-ca".to_owned(),
        names,
    }
}

#[test]
fn an_immutable_secret_is_a_trouble_that_names_the_command() {
    let troubles = live(Some(true), "7").troubles();
    assert_eq!(troubles[0].0, "SecretImmutable");
    assert!(troubles[0].1.contains("kubectl -n pristine-system delete secret pristine-ca"), "{}", troubles[0].1);
    assert_eq!(live(Some(false), "7").troubles(), []);
}

#[test]
fn an_absurd_generation_is_ignored_and_reported() {
    assert_eq!(live(None, "1007").published_generation(), 1007);
    for text in [u64::MAX.to_string(), (1_u64 << 53).to_string(), "x".to_owned(), "-1".to_owned()] {
        let live = live(None, &text);
        assert_eq!((live.published_generation(), live.troubles()[0].0), (0, "GenerationUnreadable"), "{text}");
    }
}
