//! Servers that are not there, not right or not willing: each its own error, soon, without a secret.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod servers;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair as TlsKey};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use trunkline_core::ErrorKind;
use trunkline_core::engine::Engine;
use trunkline_nats::{Auth, NatsOptions, Tls};
use trunkline_nats_server::{NatsServer, ServerOptions};

use servers::{SECRET, at, connect, refused, server, server_with};

/// It works with these.
async fn works(options: &NatsOptions) {
    let engine = connect(options)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    servers::make(&engine, servers::spec("WORKS", "works"))
        .await
        .unwrap();
    servers::soon(engine.close()).await;
}

/// What answers each connection with these words, and then only listens.
async fn says(greeting: &'static str, after: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = client.write_all(greeting.as_bytes()).await;
                let mut buffer = vec![0; 4_096];
                while let Ok(1..) = client.read(&mut buffer).await {
                    let _ = client.write_all(after.as_bytes()).await;
                }
            });
        }
    });
    format!("nats://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_listens() {
    let mut gone = server("");
    gone.kill().unwrap();
    let url = gone.url();
    let address = url.strip_prefix("nats://").unwrap();
    refused(&at(&url), ErrorKind::Disconnected, &[address, "start"]).await;
    // Several: the same, and all of them are tried although one is refused at once.
    let there = server("");
    works(&at(&format!("{url},{}", there.url()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_too_old() {
    let url = says(
        "INFO {\"server_id\":\"OLD\",\"server_name\":\"old\",\"version\":\"2.10.0\",\"go\":\"go1.21\",\
         \"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\"proto\":1,\
         \"jetstream\":true,\"client_id\":1}\r\n",
        "PONG\r\n",
    )
    .await;
    refused(
        &at(&url),
        ErrorKind::WrongVersion,
        &["2.10.0", "2.12.2", "upgrade"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_listens() {
    let page = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    for (greeting, after) in [
        ("", page),
        (page, ""),
        ("SSH-2.0-OpenSSH_9.6\r\n", ""),
        ("", ""),
    ] {
        let url = says(greeting, after).await;
        refused(&at(&url), ErrorKind::Disconnected, &["is it a NATS server"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_does_not_resolve() {
    let options = at("nats://no-such-host.invalid");
    refused(
        &options,
        ErrorKind::UnknownHost,
        &["no-such-host.invalid", "name"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_jetstream() {
    let without = server_with(ServerOptions {
        jetstream: false,
        ..ServerOptions::default()
    });
    refused(&at(&without.url()), ErrorKind::NoJetStream, &["jetstream"]).await;
    let accounts = server(
        "accounts { \
           A { jetstream: enabled, users: [{ user: a, password: s3cret-w0rd }] }, \
           B { users: [{ user: b, password: s3cret-w0rd }] } }",
    );
    works(&user(&accounts, "a", SECRET)).await;
    refused(
        &user(&accounts, "b", SECRET),
        ErrorKind::NoJetStream,
        &["account"],
    )
    .await;
}

fn user(server: &NatsServer, user: &str, password: &str) -> NatsOptions {
    with_auth(
        server,
        Auth::User {
            user: user.to_owned(),
            password: password.to_owned(),
        },
    )
}

fn with_auth(server: &NatsServer, auth: Auth) -> NatsOptions {
    NatsOptions {
        auth,
        ..at(&server.url())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_refused() {
    const KIND: ErrorKind = ErrorKind::CredentialsRefused;
    let users = server("authorization { user: shop, password: s3cret-w0rd }");
    works(&user(&users, "shop", SECRET)).await;
    works(&at(&users.url().replace("://", "://shop:s3cret-w0rd@"))).await;
    refused(&user(&users, "shop", "s3cret-w0rd2"), KIND, &["password"]).await;
    refused(
        &at(&users.url().replace("://", "://shop:s3cret-w0rds@")),
        KIND,
        &["password"],
    )
    .await;
    refused(&at(&users.url()), KIND, &["no credentials"]).await;
    refused(
        &with_auth(&users, Auth::Token(SECRET.to_owned())),
        KIND,
        &["a token"],
    )
    .await;

    let tokens = server("authorization { token: s3cret-w0rd }");
    works(&with_auth(&tokens, Auth::Token(SECRET.to_owned()))).await;
    refused(
        &with_auth(&tokens, Auth::Token("s3cret-w0rd2".to_owned())),
        KIND,
        &["a token"],
    )
    .await;
    refused(&at(&tokens.url()), KIND, &["no credentials"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nkey_is_refused() {
    let (known, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let nkeys = server(&format!(
        "authorization {{ users: [{{ nkey: {} }}] }}",
        known.public_key()
    ));
    let file = |name: &str, text: &str| nkey_file(&nkeys, name, text);
    let with = |path: PathBuf| with_auth(&nkeys, Auth::Nkey(path));
    let seed = known.seed().unwrap();
    works(&with(file("known", &seed))).await;
    works(&with(file("noted", &format!("# mine\n{seed}\n")))).await;
    let strange = file("strange", &stranger.seed().unwrap());
    refused(&with(strange), ErrorKind::CredentialsRefused, &["nkey"]).await;
    refused(
        &at(&nkeys.url()),
        ErrorKind::CredentialsRefused,
        &["no credentials"],
    )
    .await;
    let kind = ErrorKind::InvalidConfig;
    refused(&with(file("empty", "")), kind, &["empty", "seed"]).await;
    refused(&with("/no/such/seed".into()), kind, &["/no/such/seed"]).await;
    // Its checksum is wrong.
    let typo = format!(
        "{}{}",
        &seed[..57],
        if seed.ends_with('A') { 'B' } else { 'A' }
    );
    refused(
        &with(file("typo", &typo)),
        ErrorKind::CredentialsRefused,
        &["nkey"],
    )
    .await;
}

fn nkey_file(server: &NatsServer, name: &str, text: &str) -> PathBuf {
    let path = server.config_path().with_file_name(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A claim, signed.
fn jwt(claims: &mut serde_json::Value, issuer: &KeyPair) -> String {
    claims["iss"] = issuer.public_key().into();
    claims["iat"] = 1_700_000_000.into();
    claims["jti"] = "A".into();
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" }).to_string();
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", encoded(&header), encoded(&claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn creds(user: &KeyPair, account: &KeyPair) -> String {
    let mut claims = json!({
        "name": "user", "sub": user.public_key(),
        "nats": { "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} },
    });
    format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        jwt(&mut claims, account),
        user.seed().unwrap()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_is_refused() {
    let operator = KeyPair::new_operator();
    let account = |key: &KeyPair, name: &str, disk: i64| {
        let mut claims = json!({
            "name": name, "sub": key.public_key(),
            "nats": { "type": "account", "version": 2, "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
                "conn": -1, "leaf": -1, "mem_storage": disk, "disk_storage": disk, "streams": -1, "consumer": -1,
            } },
        });
        jwt(&mut claims, &operator)
    };
    let (ours, system) = (KeyPair::new_account(), KeyPair::new_account());
    let mut claims = json!({
        "name": "operator", "sub": operator.public_key(),
        "nats": { "type": "operator", "version": 2, "system_account": system.public_key() },
    });
    let signed = server(&format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        jwt(&mut claims, &operator),
        system.public_key(),
        ours.public_key(),
        account(&ours, "ours", -1),
        system.public_key(),
        account(&system, "system", 0),
    ));
    let with = |name: &str, text: &str| {
        with_auth(&signed, Auth::Credentials(nkey_file(&signed, name, text)))
    };
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_account());
    works(&with("right.creds", &creds(&user, &ours))).await;
    let kind = ErrorKind::CredentialsRefused;
    refused(
        &with("strange.creds", &creds(&user, &stranger)),
        kind,
        &["credentials file"],
    )
    .await;
    refused(&at(&signed.url()), kind, &["no credentials"]).await;
    let kind = ErrorKind::InvalidConfig;
    refused(
        &with("broken.creds", SECRET),
        kind,
        &["broken.creds", "JWT"],
    )
    .await;
    let missing = with_auth(&signed, Auth::Credentials("/no/such.creds".into()));
    refused(&missing, kind, &["/no/such.creds"]).await;
}

/// An authority and what it has signed, as files beside a server's configuration.
struct Papers {
    dir: PathBuf,
    issuer: Issuer<'static, TlsKey>,
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|start| &text[start..text.len().min(start + 64)])
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

impl Papers {
    fn new(dir: &Path) -> Self {
        let key = TlsKey::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        std::fs::write(dir.join("ca.pem"), pem("CERTIFICATE", ca.der())).unwrap();
        let papers = Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        };
        papers.sign("server", "127.0.0.1");
        papers.sign("elsewhere", "elsewhere.example");
        papers.sign("client", "client.example");
        papers
    }

    fn sign(&self, file: &str, host: &str) {
        let key = TlsKey::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate: Certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write =
            |end: &str, text: String| std::fs::write(self.dir.join(format!("{file}{end}")), text);
        write(".pem", pem("CERTIFICATE", certificate.der())).unwrap();
        write(".key", pem("PRIVATE KEY", &key.serialize_der())).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A server with these papers.
    fn server(&self, paper: &str, more: &str) -> NatsServer {
        let file = |end| self.file(&format!("{paper}.{end}"));
        server(&format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, timeout: 5 {more} }}",
            file("pem"),
            file("key"),
            self.file("ca.pem")
        ))
    }

    /// Options that know the authority.
    fn knows(&self, url: &str) -> NatsOptions {
        NatsOptions {
            tls: Tls {
                ca: Some(self.file("ca.pem")),
                ..Tls::default()
            },
            ..at(url)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_fails() {
    const KIND: ErrorKind = ErrorKind::TlsFailed;
    let plain = server("");
    let papers = Papers::new(plain.config_path().parent().unwrap());
    let server = papers.server("server", "");
    works(&papers.knows(&server.url())).await;
    works(&papers.knows(&server.url().replace("nats:", "tls:"))).await;
    refused(&at(&server.url()), KIND, &["CA"]).await;
    // It could mean any of the two, and says so.
    let insists = papers.knows(&plain.url().replace("nats:", "tls:"));
    refused(&insists, KIND, &["TLS"]).await;
    let elsewhere = papers.server("elsewhere", "");
    refused(&papers.knows(&elsewhere.url()), KIND, &["host name"]).await;

    let strict = papers.server("server", ", verify: true");
    refused(&papers.knows(&strict.url()), KIND, &["client certificate"]).await;
    let mut shown = papers.knows(&strict.url());
    shown.tls.certificate = Some(papers.file("client.pem"));
    shown.tls.key = Some(papers.file("client.key"));
    works(&shown).await;
    shown.tls.key = Some(papers.file("server.key"));
    refused(&shown, KIND, &["certificate"]).await;
    shown.tls.key = Some(papers.file("client.pem"));
    refused(&shown, ErrorKind::InvalidConfig, &["client.pem", "KEY"]).await;
    shown.tls.key = None;
    refused(&shown, ErrorKind::InvalidConfig, &["key"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_comes_first_or_not() {
    let plain = server("");
    let papers = Papers::new(plain.config_path().parent().unwrap());
    let first = papers.server("server", ", handshake_first: true");
    let mut options = papers.knows(&first.url());
    // Each waits for the other to speak.
    refused(&options, ErrorKind::Disconnected, &["TLS first"]).await;
    options.tls.first = true;
    works(&options).await;
    options.servers = vec![plain.url()];
    refused(&options, ErrorKind::TlsFailed, &["first"]).await;
    let second = papers.server("server", "");
    options.servers = vec![second.url()];
    refused(&options, ErrorKind::TlsFailed, &["first"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_options_cannot_be_meant() {
    const KIND: ErrorKind = ErrorKind::InvalidConfig;
    let there = server("");
    let options = |change: &dyn Fn(&mut NatsOptions)| {
        let mut options = at(&there.url());
        change(&mut options);
        options
    };
    let ca = |path: PathBuf| options(&|options| options.tls.ca = Some(path.clone()));
    refused(&ca("/no/such/ca.pem".into()), KIND, &["/no/such/ca.pem"]).await;
    refused(&ca(there.config_path().to_owned()), KIND, &["CERTIFICATE"]).await;
    refused(
        &options(&|options| options.servers.clear()),
        KIND,
        &["at least one"],
    )
    .await;
    let named = options(&|options| options.servers = vec![format!("nats://u:{SECRET}@127.0.0.1")]);
    refused(&named, KIND, &["apart"]).await;
    refused(
        &options(&|options| options.inbox_prefix = "a..b".to_owned()),
        KIND,
        &["a..b"],
    )
    .await;
    refused(
        &options(&|options| options.domain = Some("a.b".to_owned())),
        KIND,
        &["a.b"],
    )
    .await;
    // A domain that there is not: nobody answers.
    let stray = options(&|options| options.domain = Some("stray".to_owned()));
    refused(&stray, ErrorKind::NoJetStream, &["stray"]).await;
}
