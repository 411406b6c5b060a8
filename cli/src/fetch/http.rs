//! HTTP requests as model hubs want them: redirects followed by hand, so that a credential reaches
//! only the host it is for; retries bounded and spaced out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

/// Most redirects followed for one request.
const MAX_REDIRECTS: usize = 10;
/// Longest wait that a server may ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be requested.
    #[error("{url} is not a usable http or https URL")]
    Url {
        /// What was given.
        url: String,
    },
    /// The server answered with an error status.
    #[error("{url} answered {status}{}", explain(*.status, .detail.as_deref()))]
    Status {
        /// Where, without query.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// The server's own words, if it gave any.
        detail: Option<String>,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// No usable answer came.
    #[error("no answer from {url}")]
    Transport {
        /// Where, without query.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The connection broke while the body came.
    #[error("the transfer from {url} broke off")]
    Broken {
        /// Where, without query.
        url: String,
        /// What went wrong.
        source: io::Error,
    },
    /// More redirects than anyone needs, or one that leads from https to http.
    #[error("{url} redirects {reason}")]
    Redirect {
        /// Where, without query.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What came is not what was announced.
    #[error("{what} of {url} is {actual}, expected {expected}: the file was thrown away")]
    Mismatch {
        /// "sha256" or "size".
        what: &'static str,
        /// Where, without query.
        url: String,
        /// As announced.
        expected: String,
        /// As received.
        actual: String,
    },
    /// The answer makes no sense.
    #[error("{url} gave an answer that makes no sense: {reason}")]
    Nonsense {
        /// Where, without query.
        url: String,
        /// Why not.
        reason: String,
    },
    /// A local file could not be written or read.
    #[error("could not write {path}")]
    Local {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn explain(status: StatusCode, detail: Option<&str>) -> String {
    let meaning = match status.as_u16() {
        401 => " (not signed in, or the token is not valid)",
        403 => " (this token may not read it)",
        404 => " (no such repository, revision or file)",
        416 => " (the server refuses the byte range)",
        429 => " (too many requests)",
        _ => "",
    };
    detail.map_or_else(|| meaning.to_owned(), |detail| format!("{meaning}: {detail}"))
}

impl FetchError {
    /// Whether asking again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Status { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            FetchError::Transport { source, .. } => !matches!(**source, ureq::Error::BadUri(_)),
            FetchError::Broken { .. } => true,
            FetchError::Url { .. }
            | FetchError::Redirect { .. }
            | FetchError::Mismatch { .. }
            | FetchError::Nonsense { .. }
            | FetchError::Local { .. } => false,
        }
    }

    /// The status that the server answered with, if it was one.
    pub fn status(&self) -> Option<StatusCode> {
        if let FetchError::Status { status, .. } = self { Some(*status) } else { None }
    }
}

/// How often and how patiently to ask again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Attempts in a row that bring nothing new before giving up.
    pub attempts: u32,
    /// Wait after the first failed attempt; doubles each time, up to 16 times this.
    pub first_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 6, first_wait: Duration::from_millis(500) }
    }
}

impl Retry {
    /// How long to wait after `failures` failures in a row; none when it is time to give up.
    pub fn wait(&self, failures: u32, error: &FetchError) -> Option<Duration> {
        if failures >= self.attempts || !error.is_transient() {
            return None;
        }
        let backoff = self.first_wait * 2u32.pow(failures.saturating_sub(1).min(4));
        let asked = if let FetchError::Status { retry_after, .. } = error { *retry_after } else { None };
        Some(backoff.max(asked.unwrap_or_default().min(MAX_RETRY_AFTER)))
    }
}

/// An HTTP client with a bearer token for one host.
pub struct Client {
    agent: Agent,
    token: Option<(Uri, String)>,
    /// How failed requests are repeated.
    pub retry: Retry,
}

impl Client {
    /// A client without credentials.
    pub fn new(retry: Retry) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("rookery/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Client { agent: Agent::new_with_config(config), token: None, retry }
    }

    /// Sends this token to the origin (scheme, host, port) of `base`, and to nobody else.
    #[must_use]
    pub fn with_token(mut self, base: Uri, token: String) -> Self {
        self.token = Some((base, token));
        self
    }

    /// Sends one request and follows redirects. With `stay` only those to the same host are
    /// followed, and a redirect elsewhere is returned as it is. Error statuses are errors.
    ///
    /// # Errors
    /// [`FetchError`]; nothing is repeated here.
    pub fn send(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        stay: bool,
    ) -> Result<Response<Body>, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(method, &url, headers)?;
            if !response.status().is_redirection() {
                return check_status(&url, response);
            }
            let target = redirect_target(&url, &response)?;
            if stay && !same_origin(&url, &target) {
                return Ok(response);
            }
            url = target;
        }
        Err(FetchError::Redirect { url: shown(&url), reason: "in circles" })
    }

    /// As [`Client::send`], repeated while the failure may pass.
    ///
    /// # Errors
    /// The last [`FetchError`].
    pub fn send_patiently(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        stay: bool,
    ) -> Result<Response<Body>, FetchError> {
        let mut failures = 0;
        loop {
            let error = match self.send(method, url, headers, stay) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            failures += 1;
            let Some(wait) = self.retry.wait(failures, &error) else { return Err(error) };
            std::thread::sleep(wait);
        }
    }

    fn once(&self, method: &Method, url: &Uri, headers: &HeaderMap) -> Result<Response<Body>, FetchError> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        // Compressed transfer would make byte ranges and sizes meaningless.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some((origin, token)) = &self.token
            && same_origin(origin, url)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|_| FetchError::Url { url: shown(url) })?;
        self.agent
            .run(request)
            .map_err(|source| FetchError::Transport { url: shown(url), source: Box::new(source) })
    }
}

fn check_status(url: &Uri, mut response: Response<Body>) -> Result<Response<Body>, FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = text("retry-after").and_then(|value| value.parse().ok()).map(Duration::from_secs);
    let mut detail = text("x-error-message").map(str::to_owned);
    if detail.is_none() {
        let body = response.body_mut().with_config().limit(2048).read_to_string().unwrap_or_default();
        let body = body.trim();
        if !body.is_empty() && body.len() <= 300 && !body.starts_with('<') {
            detail = Some(body.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Err(FetchError::Status { url: shown(url), status, detail, retry_after })
}

fn redirect_target(from: &Uri, response: &Response<Body>) -> Result<Uri, FetchError> {
    let refuse = |reason| FetchError::Redirect { url: shown(from), reason };
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| refuse("without saying where to"))?;
    let target = join(from, location).ok_or_else(|| refuse("to something that is no URL"))?;
    if from.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
        return Err(refuse("from https to http"));
    }
    Ok(target)
}

/// Resolves what a `Location` header says against the URL that sent it.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = text.split('#').next()?.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Parses an http or https URL.
///
/// # Errors
/// [`FetchError::Url`].
pub fn parse_url(text: &str) -> Result<Uri, FetchError> {
    let refuse = || FetchError::Url { url: text.to_owned() };
    let uri: Uri = text.parse().map_err(|_| refuse())?;
    let usable = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    if usable { Ok(uri) } else { Err(refuse()) }
}

/// A URL for messages: without the query, which may hold a signature.
pub fn shown(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("http");
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_resolve_as_browsers_do() {
        let base: Uri = "https://hub.example/a/b?c=d".parse().unwrap();
        let joined = |location: &str| join(&base, location).map(|uri| uri.to_string());
        assert_eq!(joined("/x"), Some("https://hub.example/x".to_owned()));
        assert_eq!(joined("x?y=z#f"), Some("https://hub.example/a/x?y=z".to_owned()));
        assert_eq!(joined("//cdn.example/x"), Some("https://cdn.example/x".to_owned()));
        assert_eq!(joined("ftp://cdn.example/x"), None);
    }

    #[test]
    fn origins_compare_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(!same("https://hub.example", "http://hub.example"));
        assert!(!same("https://hub.example", "https://hub.example.evil.example"));
    }
}
