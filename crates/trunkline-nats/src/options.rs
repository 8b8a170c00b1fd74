//! How to reach NATS and who to be there.

use std::fmt;
use std::path::PathBuf;

use trunkline_core::wire::ContentMode;
use trunkline_core::{Error, ErrorKind, Result};

/// How to reach NATS and who to be there. Passwords, tokens and seeds are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsOptions {
    /// Servers to try, in any order: `host`, `host:port`, `nats://…` or `tls://…`.
    pub servers: Vec<String>,
    /// What this connection is called in the server's monitoring.
    pub name: String,
    /// Who to be.
    pub auth: Auth,
    /// Whether and how to encrypt.
    pub tls: Tls,
    /// What the subjects of answers begin with. One for each service, so that permissions can keep
    /// services from reading one another's answers. `_INBOX` by default.
    pub inbox_prefix: String,
    /// The JetStream domain, where the server is a leaf node and the streams are elsewhere.
    pub domain: Option<String>,
    /// How events are written; both modes are read.
    pub content_mode: ContentMode,
}

/// Who to be at the server.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password.
    User {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Whoever knows a token.
    Token(String),
    /// Whoever has an nkey: the file with its seed.
    Nkey(PathBuf),
    /// A user that an operator has signed: the `.creds` file with its token and its seed.
    Credentials(PathBuf),
}

/// Whether and how to encrypt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Encrypt even if the server does not ask for it; `tls://` in a URL says so too.
    pub required: bool,
    /// Encrypt before the server says a word; it must be configured with `handshake_first`.
    pub first: bool,
    /// Certificates of one's own authority, in PEM, besides those of the system.
    pub ca: Option<PathBuf>,
    /// A certificate to show to the server, in PEM. It needs `key`.
    pub certificate: Option<PathBuf>,
    /// The key of `certificate`, in PEM.
    pub key: Option<PathBuf>,
}

/// The prefix of answers' subjects unless said otherwise.
pub(crate) const DEFAULT_INBOX: &str = "_INBOX";

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            name: "trunkline".to_owned(),
            auth: Auth::default(),
            tls: Tls::default(),
            inbox_prefix: DEFAULT_INBOX.to_owned(),
            domain: None,
            content_mode: ContentMode::default(),
        }
    }
}

impl NatsOptions {
    /// The servers of a URL, and the user in it: `nats://[user:password@|token@]host[:port][,…]`,
    /// or `tls://…`. Everything else stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] for another scheme, no host, or a path or query; never quoting it.
    pub fn with_url(mut self, url: &str) -> Result<Self> {
        let refused = |what: &str| {
            Error::new(
                ErrorKind::InvalidUrl,
                format!(
                    "the NATS URL {what}; use nats://HOST:PORT, tls://HOST:PORT, or several separated by commas"
                ),
            )
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| refused("has no `://`"))?;
        if scheme != "nats" && scheme != "tls" {
            return Err(refused("begins with something else than nats:// or tls://"));
        }
        self.tls.required |= scheme == "tls";
        self.servers.clear();
        for part in rest.trim_end_matches('/').split(',') {
            let part = part.trim();
            let part = match part.split_once("://") {
                None => part,
                Some(("nats", part)) => part,
                Some(("tls", part)) => {
                    self.tls.required = true;
                    part
                }
                Some(_) => return Err(refused("has a server with another scheme")),
            };
            let host = match part.rsplit_once('@') {
                None => part,
                Some((user, host)) => {
                    self.auth = auth_of(user).ok_or_else(|| refused("has a broken user"))?;
                    host
                }
            };
            if host.is_empty()
                || host.contains(['/', '?', '#'])
                || host.contains(char::is_whitespace)
            {
                return Err(refused(
                    "has a server without a host, or with a path or query",
                ));
            }
            self.servers.push(format!("{scheme}://{host}"));
        }
        Ok(self)
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let refused = |what: String| Err(Error::new(ErrorKind::InvalidConfig, what));
        if self.servers.is_empty() {
            return refused("no NATS server is named; give at least one".to_owned());
        }
        if self.servers.iter().any(|server| server.contains('@')) {
            // They are printed, and a user is not to be.
            return refused(
                "a NATS server is named with a user; give the user apart, or all of it as a URL"
                    .to_owned(),
            );
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return refused(
                "a TLS client certificate needs its key and a key its certificate; give both or none"
                    .to_owned(),
            );
        }
        let token = |token: &str| !token.is_empty() && !token.contains(['*', '>', ' ', '\t']);
        if !self.inbox_prefix.split('.').all(token) {
            return refused(format!(
                "inbox prefix {:?} is no subject; use tokens separated by dots, as _INBOX.billing",
                self.inbox_prefix
            ));
        }
        if let Some(domain) = &self.domain
            && (!token(domain) || domain.contains('.'))
        {
            return refused(format!(
                "JetStream domain {domain:?} is not one token of a subject; use its name alone"
            ));
        }
        Ok(())
    }

    /// The servers, for people: nothing in here is secret.
    pub(crate) fn place(&self) -> String {
        self.servers.join(", ")
    }
}

fn auth_of(user: &str) -> Option<Auth> {
    let decoded = |text: &str| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        text.ok().map(std::borrow::Cow::into_owned)
    };
    Some(match user.split_once(':') {
        None => Auth::Token(decoded(user)?),
        Some((user, password)) => Auth::User {
            user: decoded(user)?,
            password: decoded(password)?,
        },
    })
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Auth {
    /// What kind of credentials it is, never what they are.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Auth::Anonymous => "no credentials",
            Auth::User { .. } => "a user and a password",
            Auth::Token(_) => "a token",
            Auth::Nkey(_) => "an nkey",
            Auth::Credentials(_) => "a credentials file",
        }
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("servers", &self.servers)
            .field("name", &self.name)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("domain", &self.domain)
            .field("content_mode", &self.content_mode)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<NatsOptions> {
        NatsOptions::default().with_url(url)
    }

    #[test]
    fn a_url_names_servers_and_a_user() {
        let options = read("nats://u:p%40ss@a:4222,b,nats://c:1").unwrap();
        assert_eq!(options.servers, ["nats://a:4222", "nats://b", "nats://c:1"]);
        let auth = Auth::User {
            user: "u".to_owned(),
            password: "p@ss".to_owned(),
        };
        assert_eq!(options.auth, auth);
        assert!(!format!("{options:?}").contains("p@ss"));
        assert_eq!(
            read("nats://s3cret@a").unwrap().auth,
            Auth::Token("s3cret".to_owned())
        );
        assert!(read("tls://a").unwrap().tls.required);
    }

    #[test]
    fn a_url_that_cannot_be_meant_is_refused_without_being_quoted() {
        for url in [
            "nats:a",
            "nats://",
            "nats://a,",
            "ws://a",
            "nats://a/path",
            "nats://a?x=s3cret",
            "nats://u:s3cret@",
        ] {
            let error = read(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
