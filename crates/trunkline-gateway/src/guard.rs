//! Who may come in: the check of `Host` and `Origin`.
//!
//! A browser lets any page send requests to loopback, and a name that its owner points at
//! 127.0.0.1 makes that page the same origin. Both show in these two headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use trunkline::{Error, ErrorKind, Result};

use crate::problem::Problem;

/// Refuses what the policy does not admit; tells the browser which other origins it does.
pub(crate) async fn guard(
    State(policy): State<Arc<Policy>>,
    request: Request,
    next: Next,
) -> Response {
    let authority = request.uri().authority().map(uri::Authority::as_str);
    let foreign = match policy.check(request.headers(), authority) {
        Ok(Caller::Own) => return next.run(request).await,
        Ok(Caller::Foreign(origin)) => origin,
        Err(error) => return Problem::from(error).into_response(),
    };
    let asked = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .cloned();
    let preflight = request
        .headers()
        .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if request.method() == Method::OPTIONS && preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let methods = HeaderValue::from_static("GET, POST");
        response
            .headers_mut()
            .insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        // An origin that is allowed is allowed with any header: attributes are headers too.
        if let Some(asked) = asked {
            response
                .headers_mut()
                .insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, foreign);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("trunkline-hint"),
    );
    response
}

/// Which hosts and origins are served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    hosts: Vec<Authority>,
    origins: Vec<Origin>,
}

/// Who asks, once admitted.
#[derive(Debug, PartialEq, Eq)]
enum Caller {
    /// No page, or one of the door's own.
    Own,
    /// A page of another origin that is allowed.
    Foreign(HeaderValue),
}

impl Policy {
    pub(crate) fn new(hosts: &[String], origins: &[String]) -> Result<Self> {
        let mut policy = Self::default();
        let mut faults = Vec::new();
        for host in hosts {
            match Authority::parse(host) {
                Some(host) => policy.hosts.push(host),
                None => faults.push(format!("{host:?} is no host: use `name` or `name:port`")),
            }
        }
        for origin in origins {
            match Origin::parse(origin) {
                Some(origin) => policy.origins.push(origin),
                None => faults.push(format!(
                    "{origin:?} is no origin: use `https://name` or `https://name:port`"
                )),
            }
        }
        if faults.is_empty() {
            Ok(policy)
        } else {
            Err(Error::new(ErrorKind::InvalidConfig, faults.join("; ")))
        }
    }

    /// Also serves the address that is listened on, by that address.
    pub(crate) fn and_address(mut self, listening: SocketAddr) -> Self {
        let host = match listening.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        self.hosts.push(Authority {
            host,
            port: Some(listening.port()),
        });
        self
    }

    fn check(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<Caller> {
        let host = one(headers, &header::HOST)?.map(text).transpose()?;
        // A request line with a whole URL goes before `Host`; both must be good.
        for named in [host, authority].into_iter().flatten() {
            if !self.admits_host(named) {
                return Err(forbidden(format!(
                    "Host {named:?} is not served here; call it by the address that it listens on, or allow that host"
                )));
            }
        }
        let Some(host) = authority.or(host) else {
            return Err(forbidden("the request has no Host".to_owned()));
        };
        let Some(value) = one(headers, &header::ORIGIN)? else {
            return Ok(Caller::Own);
        };
        let origin = text(value)?;
        match Origin::parse(origin) {
            Some(origin) if origin.is_at(host) => Ok(Caller::Own),
            Some(parsed) if self.origins.contains(&parsed) => Ok(Caller::Foreign(value.clone())),
            _ => Err(forbidden(format!(
                "pages of origin {origin:?} may not use this bus; allow that origin if they should"
            ))),
        }
    }

    fn admits_host(&self, host: &str) -> bool {
        let Some(host) = Authority::parse(host) else {
            return false;
        };
        let same = |allowed: &Authority| {
            allowed.host == host.host && (allowed.port.is_none() || allowed.port == host.port)
        };
        host.is_loopback() || self.hosts.iter().any(same)
    }
}

/// The value of a header that may be there once.
fn one<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(forbidden(format!("the request has more than one {name}"))),
    }
}

fn text(value: &HeaderValue) -> Result<&str> {
    value
        .to_str()
        .map_err(|_| forbidden(format!("{value:?} is neither a host nor an origin")))
}

fn forbidden(message: String) -> Error {
    Error::new(ErrorKind::Forbidden, message)
}

/// A host in lower case (an IPv6 address in brackets), perhaps with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.find(']') {
            Some(end) => text.split_at(end + 1),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
            None if port.is_empty() => None,
            None => return None,
        };
        let legal = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
            None => {
                let named =
                    |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                !host.is_empty() && host.bytes().all(named)
            }
        };
        legal.then(|| Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host == "[::1]"
            || self
                .host
                .parse::<Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

/// What a page came from: scheme, host, and a port that is always known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    host: String,
    port: u16,
    default_port: u16,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let Authority { host, port } = Authority::parse(authority)?;
        Some(Self {
            host,
            port: port.unwrap_or(default_port),
            default_port,
        })
    }

    /// Whether a page of this origin would call its own host so.
    fn is_at(&self, host: &str) -> bool {
        let same = |host: Authority| {
            host.host == self.host && host.port.unwrap_or(self.default_port) == self.port
        };
        Authority::parse(host).is_some_and(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let policy = Policy::new(
            &["bus.lan".to_owned(), "Other.lan:7400".to_owned()],
            &[
                "https://console.lan".to_owned(),
                "http://localhost:3000".to_owned(),
            ],
        );
        policy
            .unwrap()
            .and_address("192.168.1.5:7400".parse().unwrap())
    }

    #[test]
    fn hosts_are_loopback_allowed_or_listened_on() {
        let check = |host: &str, expected: bool| {
            assert_eq!(policy().admits_host(host), expected, "{host:?}");
        };
        for good in [
            "localhost",
            "LOCALHOST:7400",
            "127.0.0.1",
            "127.0.0.1:7400",
            "127.8.9.1:1",
            "[::1]",
            "[::1]:7400",
            "bus.lan",
            "bus.lan:9",
            "BUS.lan",
            "other.lan:7400",
            "192.168.1.5:7400",
        ] {
            check(good, true);
        }
        for bad in [
            "",
            ":7400",
            "evil.example",
            "evil.example:7400",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "localhost@evil",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::1",
            "::1",
            "[::1]x",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:80:80",
            "localhost/",
            "localhost ",
            "other.lan",
            "other.lan:7401",
            "192.168.1.5",
            "192.168.1.5:7401",
        ] {
            // An empty port is what RFC 3986 allows and nobody sends.
            check(bad, false);
        }
    }

    #[test]
    fn origins_are_the_doors_own_or_allowed() {
        let check = |host: &'static str, origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            policy()
                .check(&headers, None)
                .ok()
                .map(|caller| caller == Caller::Own)
        };
        assert_eq!(check("localhost:7400", "http://localhost:7400"), Some(true));
        assert_eq!(check("localhost", "http://LOCALHOST:80"), Some(true));
        assert_eq!(check("bus.lan", "https://bus.lan"), Some(true));
        assert_eq!(check("localhost:7400", "https://console.lan"), Some(false));
        assert_eq!(
            check("localhost:7400", "http://localhost:3000"),
            Some(false)
        );
        for bad in [
            "null",
            "",
            "http://evil.example",
            "http://localhost",
            "http://localhost:7401",
            "http://127.0.0.1:7400",
            "https://console.lan:444",
            "http://console.lan",
            "https://console.lan.evil.example",
            "file://localhost:7400",
            "http://localhost:7400/",
            "https://console.lan, https://evil.example",
        ] {
            assert_eq!(check("localhost:7400", bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_request_has_exactly_one_host_and_its_whole_url_counts_too() {
        let mut headers = HeaderMap::new();
        assert_eq!(
            policy().check(&headers, None).unwrap_err().kind(),
            ErrorKind::Forbidden
        );
        assert!(policy().check(&headers, Some("localhost")).is_ok());
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(policy().check(&headers, Some("evil.example")).is_err());
        assert!(policy().check(&headers, None).is_ok());
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(policy().check(&headers, None).is_err());
    }

    #[test]
    fn a_policy_names_all_that_is_wrong_with_it() {
        let error =
            Policy::new(&["a b".to_owned()], &["*".to_owned(), "x.lan".to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        for part in ["\"a b\"", "\"*\"", "\"x.lan\""] {
            assert!(error.message().contains(part), "{error}");
        }
    }
}
