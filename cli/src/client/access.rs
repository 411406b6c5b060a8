//! Channels to endpoints: with TLS where the URL says so, and with the token that was given.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use rookery_proto::tls::{self, ALPN_H2, Connector, Trust};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::DEFAULT_ENDPOINT;
use crate::error::{Failure, OrFail};

/// Longest time to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to an endpoint on which every call carries the token.
pub type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// How endpoints are called by this process.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// PEM file of the authority that is trusted; `None`: the public ones.
    pub authority: Option<PathBuf>,
    /// Bearer token.
    pub token: Option<String>,
}

/// Set once from the command line: it is the same for whatever a command calls.
static ACCESS: OnceLock<Access> = OnceLock::new();

/// Says how endpoints are called from now on. Only the first call counts.
pub fn use_access(access: Access) {
    // A second one comes from tests in one process only, which call without.
    let _ = ACCESS.set(access);
}

/// Adds the token to calls.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Bearer {
    fn new(token: &str) -> Result<Self, Failure> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| Failure::usage("the token has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

/// Where an endpoint is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    url: String,
    /// `host:port`.
    address: String,
    /// Without the brackets of IPv6.
    host: String,
    tls: bool,
}

impl Place {
    fn parse(endpoint: &str) -> Option<Self> {
        let (tls, rest) = match endpoint.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return None,
            None => (false, endpoint),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address without a port are not followed by one.
            Some((host, port)) if !port.ends_with(']') => (host, port),
            Some(_) | None if tls => (authority, "443"),
            Some(_) | None => return None,
        };
        let port: u16 = port.parse().ok()?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let fine = match bare {
            Some(bare) => bare.parse::<IpAddr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(plain),
        };
        let scheme = if tls { "https" } else { "http" };
        fine.then(|| Self {
            url: format!("{scheme}://{host}:{port}"),
            address: format!("{host}:{port}"),
            host: bare.unwrap_or(host).to_owned(),
            tls,
        })
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

/// Connects to `http://host:port`, `https://host[:port]`, or just `host:port`.
///
/// # Errors
/// If that is no address, nobody answers there, or its certificate is not trusted.
pub async fn channel(endpoint: &str) -> Result<Channel, Failure> {
    channel_as(endpoint, &ACCESS.get().cloned().unwrap_or_default()).await
}

/// The same with another token and authority than those of the command line.
///
/// # Errors
/// As [`channel`].
pub async fn channel_as(endpoint: &str, access: &Access) -> Result<Channel, Failure> {
    let place = Place::parse(endpoint).ok_or_else(|| {
        Failure::usage(format!("{endpoint} is not an endpoint such as {DEFAULT_ENDPOINT}"))
            .hint("http://HOST:PORT speaks gRPC without TLS, https://HOST:PORT with it")
    })?;
    let bearer = match &access.token {
        Some(_) if !place.tls && !place.is_loopback() => {
            return Err(Failure::usage(format!("the token would travel to {} in plain text", place.url))
                .hint(format!("call https://{}", place.address)));
        }
        Some(token) => Bearer::new(token)?,
        None => Bearer::default(),
    };
    let channel = if place.tls { encrypted(&place, access).await } else { plain(&place).await }?;
    Ok(InterceptedService::new(channel, bearer))
}

async fn plain(place: &Place) -> Result<tonic::transport::Channel, Failure> {
    let unusable = |error| Failure::usage(format!("{} is not an endpoint", place.url)).caused_by(error);
    let endpoint = Endpoint::from_shared(place.url.clone()).map_err(unusable)?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
        Failure::new(format!("nobody answers at {}", place.url))
            .caused_by(error)
            .hint("start one with `rookery demo` or `rookery up BUNDLE`, or give --endpoint")
    })
}

async fn encrypted(place: &Place, access: &Access) -> Result<tonic::transport::Channel, Failure> {
    let trust = trust(access)?;
    let configure = move || Ok(tls::client_config(trust.clone(), None, ALPN_H2, None)?);
    let connector = Connector::new(&place.address, &place.host, CONNECT_TIMEOUT, configure);
    connector.connected().await.map_err(|error| {
        let hint = match access.authority {
            Some(_) => "is it a control plane, and is --ca the authority of its certificate?",
            None => "is it a control plane? One with a certificate of its own needs --ca, with its ca.pem",
        };
        Failure::new(format!("there is no connection to {}", place.url)).caused_by(error).hint(hint)
    })
}

fn trust(access: &Access) -> Result<Trust, Failure> {
    let Some(path) = &access.authority else {
        return Ok(Trust::Roots(webpki_roots::TLS_SERVER_ROOTS.to_vec()));
    };
    let text = std::fs::read_to_string(path).or_fail(|| format!("could not read {}", path.display()))?;
    let authorities =
        tls::certificates(&text).or_fail(|| format!("{} has no certificate", path.display()))?;
    Ok(Trust::Authorities(authorities))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        let place = |text| Place::parse(text).map(|place| (place.url, place.host, place.tls));
        let found = |url: &str, host: &str, tls| Some((url.to_owned(), host.to_owned(), tls));
        assert_eq!(place("127.0.0.1:7070"), found("http://127.0.0.1:7070", "127.0.0.1", false));
        assert_eq!(place("https://plane.example"), found("https://plane.example:443", "plane.example", true));
        assert_eq!(place("https://[::1]:7070/"), found("https://[::1]:7070", "::1", true));
        assert_eq!(place("https://[::1]"), found("https://[::1]:443", "::1", true));
        for text in ["", "host", "ftp://a:1", "http://a", "http://a:b", "http://:1", "a b:1", "http://a:1/x"]
        {
            assert_eq!(place(text), None, "{text}");
        }
        assert!(Place::parse("localhost:1").unwrap().is_loopback());
        assert!(!Place::parse("10.0.0.1:1").unwrap().is_loopback());
    }

    #[test]
    fn tokens_with_odd_characters_are_refused_and_good_ones_hidden() {
        assert!(Bearer::new("a\nb").is_err());
        let bearer = Bearer::new("secret\n").unwrap().0.unwrap();
        assert_eq!(bearer.to_str().unwrap(), "Bearer secret");
        assert!(!format!("{bearer:?}").contains("secret"));
    }
}
