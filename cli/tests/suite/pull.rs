//! Downloads against a local server that speaks as Hugging Face does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::hub::{Answer, Asked, Server};
use crate::support::{rookery, run};
use rookery::fetch::download::{Remote, download};
use rookery::fetch::http::{Client, FetchError, Retry, parse_url};
use rookery::fetch::{digest, hub};
use rookery_model::bundle::NoProgress;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn content() -> Vec<u8> {
    (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    digest::of_reader(bytes, &NoProgress).unwrap()
}

fn quick() -> Retry {
    Retry { attempts: 3, first_wait: Duration::from_millis(1) }
}

fn remote(server: &Server, path: &str, sha256: Option<String>) -> Remote {
    let url = parse_url(&format!("{}{path}", server.url())).unwrap();
    Remote { url, label: "model".to_owned(), version: Some("v1".to_owned()), sha256, size: None }
}

/// A hub that keeps large files on another host, as the real one does.
fn hub_and_cdn(token: Option<&'static str>) -> (Server, Server) {
    let cdn = Server::start(|asked| Answer::ranged(&content(), asked, "\"cdn-1\""));
    let cdn_url = cdn.url();
    let hub = Server::start(move |asked| {
        if asked.header("authorization") != token.map(|token| format!("Bearer {token}")).as_deref() {
            return Answer::status(401).with("x-error-message", "Invalid credentials");
        }
        let file = |revision: &str| format!("/owner/repo/resolve/{revision}/model.gguf");
        if asked.path != file("main") && asked.path != file(COMMIT) {
            return Answer::status(404).with("x-error-code", "EntryNotFound");
        }
        Answer::status(302)
            .with("location", format!("{cdn_url}/blob?signature=secret"))
            .with("x-repo-commit", COMMIT)
            .with("x-linked-etag", format!("\"{}\"", sha256(&content())))
            .with("x-linked-size", content().len().to_string())
    });
    (hub, cdn)
}

#[test]
fn a_file_comes_from_the_hub_by_way_of_another_host_without_the_token() {
    let (hub, cdn) = hub_and_cdn(Some("secret-token"));
    let cache = tempfile::tempdir().unwrap();
    let pull = || {
        run(rookery()
            .args(["pull", "hf://owner/repo/model.gguf"])
            .env("HF_ENDPOINT", hub.url())
            .env("HF_TOKEN", "secret-token")
            .env("XDG_CACHE_HOME", cache.path()))
    };
    let (code, path, error) = pull();
    assert_eq!(code, Some(0), "{error}");
    assert!(path.contains(COMMIT), "{path}");
    assert_eq!(std::fs::read(path.trim()).unwrap(), content());
    assert_eq!(cdn.asked().len(), 1);
    assert!(cdn.asked().iter().all(|asked| asked.header("authorization").is_none()));
    // The second run only asks whether there is a newer one.
    assert_eq!(pull().1, path);
    assert_eq!(cdn.asked().len(), 1);
}

#[test]
fn refusals_are_explained() {
    let (hub, _cdn) = hub_and_cdn(Some("right"));
    let cache = tempfile::tempdir().unwrap();
    let pull = |source: &str, token: &str| {
        let (code, _, error) = run(rookery()
            .args(["pull", source])
            .env("HF_ENDPOINT", hub.url())
            .env("HF_TOKEN", token)
            .env("XDG_CACHE_HOME", cache.path()));
        assert_eq!(code, Some(1));
        error
    };
    let error = pull("hf://owner/repo/model.gguf", "wrong");
    assert!(
        error.contains("401") && error.contains("Invalid credentials") && error.contains("HF_TOKEN"),
        "{error}"
    );
    let error = pull("hf://owner/repo/other.gguf", "right");
    assert!(error.contains("404") && error.contains("check owner"), "{error}");
    assert!(!error.contains("right"), "no token in messages: {error}");
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let times = Arc::new(AtomicUsize::new(0));
    let counted = times.clone();
    let server = Server::start(move |asked| {
        let answer = Answer::ranged(&content(), asked, "\"one\"");
        // The first two answers break off in the middle.
        if counted.fetch_add(1, Ordering::Relaxed) < 2 { answer.cut(40_000) } else { answer }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let remote = remote(&server, "/m", Some(sha256(&content())));
    download(&Client::new(quick()), &remote, &path, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    let starts: Vec<_> = server.asked().iter().map(Asked::range_start).collect();
    assert_eq!(starts, [None, Some(40_000), Some(80_000)]);
    assert_eq!(server.asked()[1].header("if-range"), Some("\"one\""));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no partial files stay: {left:?}");
}

#[test]
fn another_run_goes_on_where_an_earlier_one_gave_up() {
    let server = Server::start(|asked| {
        let answer = Answer::ranged(&content(), asked, "\"one\"");
        if asked.path == "/m" && asked.range_start().is_none() { answer.cut(60_000) } else { answer }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let remote = remote(&server, "/m", Some(sha256(&content())));
    let once = Retry { attempts: 1, ..quick() };
    let error = download(&Client::new(once.clone()), &remote, &path, &NoProgress).unwrap_err();
    assert!(matches!(error, FetchError::Broken { .. }), "{error:?}");
    assert!(!path.exists(), "a partial file is never taken for whole");
    download(&Client::new(once), &remote, &path, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert_eq!(server.asked()[1].range_start(), Some(60_000));
}

#[test]
fn a_changed_file_is_fetched_from_the_start() {
    let changed: Vec<u8> = content().into_iter().rev().collect();
    let expected = changed.clone();
    let server = Server::start(move |asked| {
        if asked.range_start().is_none() && asked.header("if-range").is_none() {
            return Answer::ranged(&content(), asked, "\"old\"").cut(30_000);
        }
        Answer::ranged(&changed, asked, "\"new\"")
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    download(&Client::new(quick()), &remote(&server, "/m", None), &path, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

#[test]
fn a_server_that_ignores_ranges_is_fine() {
    let times = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let answer = Answer::body(content()).with("etag", "\"one\"");
        if times.fetch_add(1, Ordering::Relaxed) == 0 { answer.cut(50_000) } else { answer }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    download(&Client::new(quick()), &remote(&server, "/m", None), &path, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
}

#[test]
fn wrong_content_is_refused_and_thrown_away() {
    let server = Server::start(|asked| Answer::ranged(&content(), asked, "\"one\""));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let remote = remote(&server, "/m", Some("0".repeat(64)));
    let error = download(&Client::new(quick()), &remote, &path, &NoProgress).unwrap_err();
    assert!(matches!(error, FetchError::Mismatch { what: "sha256", .. }), "{error}");
    assert!(!path.exists() && !folder.path().join("model.partial").exists());
}

#[test]
fn a_partial_file_longer_than_the_file_starts_over() {
    let server = Server::start(|asked| Answer::ranged(&content(), asked, "\"one\""));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let remote = remote(&server, "/m", Some(sha256(&content())));
    std::fs::write(folder.path().join("model.partial"), vec![9; 200_000]).unwrap();
    let notes = format!("{{\"url\":\"{}/m\",\"version\":\"v1\",\"etag\":\"\\\"one\\\"\"}}", server.url());
    std::fs::write(folder.path().join("model.partial.json"), notes).unwrap();
    download(&Client::new(quick()), &remote, &path, &NoProgress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert_eq!(server.asked().len(), 2, "one 416, one whole answer");
}

#[test]
fn retries_are_bounded_and_only_for_what_may_pass() {
    let server = Server::start(|asked| match asked.path.as_str() {
        "/busy" => Answer::status(503),
        "/loop" => Answer::status(302).with("location", "/loop"),
        _ => Answer::status(403),
    });
    let folder = tempfile::tempdir().unwrap();
    let fetch = |path: &str| {
        let before = server.asked().len();
        let result = download(
            &Client::new(quick()),
            &remote(&server, path, None),
            &folder.path().join("m"),
            &NoProgress,
        );
        (result.unwrap_err(), server.asked().len() - before)
    };
    assert_eq!(fetch("/busy").1, 3);
    assert_eq!(fetch("/forbidden").1, 1);
    let (error, _) = fetch("/loop");
    assert!(matches!(error, FetchError::Redirect { .. }), "{error}");
}

#[test]
fn a_whole_repository_comes_at_one_commit() {
    let hub = Server::start(|asked| {
        let listing = serde_json::json!([
            { "type": "file", "path": "config.json", "size": 2 },
            { "type": "file", "path": "tokenizer.json", "size": 3 },
            { "type": "file", "path": "README.md", "size": 9 },
            { "type": "directory", "path": "onnx", "size": 0 },
            { "type": "file", "path": "model.safetensors", "size": content().len(),
              "lfs": { "oid": sha256(&content()), "size": content().len() } },
        ]);
        let file = |name: &str| format!("/owner/repo/resolve/{COMMIT}/{name}");
        match asked.path.as_str() {
            "/api/models/owner/repo/revision/main" => Answer::body(format!("{{\"sha\":\"{COMMIT}\"}}")),
            path if path == format!("/api/models/owner/repo/tree/{COMMIT}") => {
                Answer::body(listing.to_string())
            }
            path if path == file("config.json") => Answer::body("{}"),
            path if path == file("tokenizer.json") => Answer::body("{ }"),
            path if path == file("model.safetensors") => Answer::ranged(&content(), asked, "\"one\""),
            _ => Answer::status(404),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let reference = hub::Reference::parse("hf://owner/repo").unwrap();
    let place = |commit: &str| folder.path().join(commit);
    let path =
        hub::Hub::new(&hub.url(), None, quick()).unwrap().pull_model(&reference, place, &NoProgress).unwrap();
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), content());
    assert!(path.join("config.json").exists() && path.join("tokenizer.json").exists());
    assert!(!path.join("README.md").exists());
}
