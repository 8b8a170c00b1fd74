//! Who to be at a NATS server, as plain values that a configuration can hold.

use std::fmt;

use trunkline_core::wire::ContentMode;

/// Who to be at a NATS server, and how to reach it. An empty text is nothing said. At most one kind of
/// credentials may be given; none of them is ever printed.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nats {
    /// What this connection is called in the server's monitoring. `trunkline` by default.
    pub name: String,
    /// The user, with [`password`](Self::password).
    pub user: String,
    /// The user's password.
    pub password: String,
    /// A token, in place of a user.
    pub token: String,
    /// The file with the seed of an nkey.
    pub nkey_file: String,
    /// The `.creds` file of a user that an operator has signed.
    pub credentials_file: String,
    /// Whether to encrypt even if the server does not ask for it; `tls://` in the URL says so too.
    pub tls: bool,
    /// Whether to encrypt before the server says a word (`handshake_first`).
    pub tls_first: bool,
    /// Certificates of one's own authority, in PEM, besides those of the system.
    pub tls_ca: String,
    /// A certificate to show to the server, in PEM, with [`tls_key`](Self::tls_key).
    pub tls_certificate: String,
    /// The key of the certificate, in PEM.
    pub tls_key: String,
    /// What the subjects of answers begin with: one for each service. `_INBOX` by default.
    pub inbox_prefix: String,
    /// The JetStream domain, where the server is a leaf node and the streams are elsewhere.
    pub domain: String,
    /// How events are written: structured unless set, binary where data is large or no JSON. Both
    /// are read.
    pub content_mode: ContentMode,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            name: "trunkline".to_owned(),
            user: String::new(),
            password: String::new(),
            token: String::new(),
            nkey_file: String::new(),
            credentials_file: String::new(),
            tls: false,
            tls_first: false,
            tls_ca: String::new(),
            tls_certificate: String::new(),
            tls_key: String::new(),
            inbox_prefix: "_INBOX".to_owned(),
            domain: String::new(),
            content_mode: ContentMode::default(),
        }
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("name", &self.name)
            .field("tls", &self.tls)
            .field("inbox_prefix", &self.inbox_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "nats")]
impl Nats {
    /// As the engine takes it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](trunkline_core::ErrorKind::InvalidConfig) for more than one kind of
    /// credentials, or half of one.
    pub fn options(&self) -> trunkline_core::Result<trunkline_nats::NatsOptions> {
        use trunkline_nats::{Auth, NatsOptions, Tls};
        let refused =
            |what: &str| trunkline_core::Error::new(trunkline_core::ErrorKind::InvalidConfig, what);
        let user = !self.user.is_empty() || !self.password.is_empty();
        let kinds = [&self.token, &self.nkey_file, &self.credentials_file];
        let given = usize::from(user) + kinds.iter().filter(|kind| !kind.is_empty()).count();
        if given > 1 {
            return Err(refused(
                "more than one of nats.user, nats.token, nats.nkey_file and nats.credentials_file is given; keep one",
            ));
        }
        if user && (self.user.is_empty() || self.password.is_empty()) {
            return Err(refused(
                "nats.user and nats.password belong together; give both",
            ));
        }
        let auth = if user {
            Auth::User {
                user: self.user.clone(),
                password: self.password.clone(),
            }
        } else if !self.token.is_empty() {
            Auth::Token(self.token.clone())
        } else if !self.nkey_file.is_empty() {
            Auth::Nkey(self.nkey_file.clone().into())
        } else if !self.credentials_file.is_empty() {
            Auth::Credentials(self.credentials_file.clone().into())
        } else {
            Auth::Anonymous
        };
        let path = |text: &str| (!text.is_empty()).then(|| text.into());
        Ok(NatsOptions {
            name: self.name.clone(),
            auth,
            tls: Tls {
                required: self.tls,
                first: self.tls_first,
                ca: path(&self.tls_ca),
                certificate: path(&self.tls_certificate),
                key: path(&self.tls_key),
            },
            inbox_prefix: self.inbox_prefix.clone(),
            domain: (!self.domain.is_empty()).then(|| self.domain.clone()),
            content_mode: self.content_mode,
            ..NatsOptions::default()
        })
    }
}
