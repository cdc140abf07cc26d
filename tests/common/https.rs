//! Bytes over real TLS: a client that can also send what no HTTP library would.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const NAME: &str = "pristine.pristine-system.svc";

pub struct Connection(TlsStream<TcpStream>);

/// Trusts these roots, or whoever answers if there are none.
pub async fn connect(address: SocketAddr, roots: &[CertificateDer<'static>]) -> std::io::Result<Connection> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = if roots.is_empty() {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth()
    } else {
        let mut store = RootCertStore::empty();
        roots.iter().for_each(|root| store.add(root.clone()).unwrap());
        builder.with_root_certificates(store).with_no_client_auth()
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(NAME).unwrap();
    Ok(Connection(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
}

/// Status code and body of an answer, and whether the server will close.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub close: bool,
    /// The client is to send the request again at once.
    pub retry: bool,
}

impl Connection {
    /// What the server showed, the leaf only.
    pub fn peer_certificate(&self) -> Vec<u8> {
        self.0.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    pub async fn receive(&mut self) -> std::io::Result<Answer> {
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
                let length: usize =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0").parse().unwrap();
                if read.len() >= end + 4 + length {
                    let body = String::from_utf8_lossy(&read[end + 4..end + 4 + length]).into_owned();
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    let (close, retry) = (head.contains("connection: close"), head.contains("retry-after: 0"));
                    return Ok(Answer { status, body, close, retry });
                }
            }
            match self.0.read(&mut buffer).await? {
                0 => return Err(std::io::Error::other("closed before an answer")),
                n => read.extend_from_slice(&buffer[..n]),
            }
        }
    }

    pub async fn post(&mut self, body: &[u8]) -> std::io::Result<Answer> {
        self.post_to("/", body).await
    }

    pub async fn post_to(&mut self, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        let length = body.len();
        let head = format!("POST {path}?timeout=5s HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {length}\r\n\r\n");
        self.send(head.as_bytes()).await?;
        self.send(body).await?;
        self.receive().await
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
