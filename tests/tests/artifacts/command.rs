//! `rookery models` as people use it.

use rookery_tests::processes::{Serving, rookery};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{PIECE, TestBundle};

struct Shell {
    endpoint: String,
    folder: TempDir,
}

impl Shell {
    /// Runs `rookery ARGUMENTS` in the folder; exit code, standard output and error.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = rookery().unwrap();
        command.args(arguments).current_dir(self.folder.path()).env("ROOKERY_ENDPOINT", &self.endpoint);
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    async fn good(&self, arguments: &[&str]) -> String {
        let (code, out, error) = self.run(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
        out
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.good(arguments).await).unwrap()
    }

    async fn bad(&self, arguments: &[&str], code: i32, says: &str) {
        let (found, _, error) = self.run(arguments).await;
        assert!(found == Some(code) && error.contains(says), "{arguments:?}: {found:?} {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_bundle_to_a_signed_version_and_away_again() {
    let state = TempDir::new().unwrap();
    let any = "127.0.0.1:0";
    let folder = state.path().to_str().unwrap();
    let plane = ["control-plane", "--listen", any, "--link-listen", any, "--state", folder];
    let mut plane = Serving::start(&plane).await.unwrap();
    let shell = Shell { endpoint: format!("http://{}", plane.listen), folder: TempDir::new().unwrap() };
    let bundle = TestBundle::with_noise(1, &[3 * PIECE]);
    let path = bundle.path.to_str().unwrap();

    let made = shell.json(&["models", "keys", "generate", "release", "--json"]).await;
    shell.bad(&["models", "keys", "generate", "release"], 1, "release.key.pem").await;
    let key = made["key_id"].as_str().unwrap();
    assert!(shell.good(&["models", "keys", "trust", "release.pub.pem"]).await.contains(key));
    assert_eq!(shell.json(&["models", "keys", "list", "--json"]).await[0]["key_id"], key);

    let push = ["models", "push", path, "--name", "org/tiny", "--version", "1", "--alias", "canary"];
    let pushed = shell.json(&[&push[..], &["--sign", "release.key.pem", "--json"]].concat()).await;
    assert_eq!((&pushed["digest"], &pushed["signed_by"]), (&json!(bundle.digest()), &json!([key])));
    assert_eq!(pushed["sent_bytes"], json!(bundle.info.total_bytes - bundle.info.manifest_size));
    let again = shell.json(&[&push[..], &["--json"]].concat()).await;
    assert_eq!(again["sent_bytes"], 0);
    let other = TestBundle::with_noise(2, &[PIECE]);
    let mut taken = push;
    taken[2] = other.path.to_str().unwrap();
    shell.bad(&taken, 1, "VERSION_EXISTS").await;
    shell.bad(&["models", "push", path, "--version", "a/b"], 1, "INVALID_FIELD").await;
    shell.bad(&["models", "push", "/nowhere", "--version", "1"], 1, "/nowhere").await;

    let listed = shell.json(&["models", "versions", "org/tiny", "--json"]).await;
    assert_eq!((&listed[0]["version"], &listed[0]["aliases"]), (&json!("1"), &json!(["canary"])));
    assert!(shell.good(&["models", "versions"]).await.contains("canary"));
    assert_eq!(shell.json(&["models", "list", "--json"]).await, json!([]), "nothing serves it yet");

    // Signed where there is no network, added where there is no key.
    shell.good(&["models", "keys", "generate", "other"]).await;
    shell.good(&["models", "sign", path, "--key", "other.key.pem", "--output", "tiny.sig"]).await;
    shell.good(&["models", "sign", "org/tiny@1", "--signature", "tiny.sig"]).await;
    let listed = shell.json(&["models", "versions", "--json"]).await;
    assert_eq!(listed[0]["signed_by"].as_array().unwrap().len(), 2);
    shell.bad(&["models", "sign", "org/tiny", "--key", "other.key.pem"], 2, "MODEL@VERSION").await;
    shell.good(&["models", "keys", "distrust", key]).await;

    shell.bad(&["models", "delete", "org/tiny@1"], 1, "canary").await;
    shell.good(&["models", "alias", "org/tiny@1", "stable"]).await;
    shell.good(&["models", "unalias", "org/tiny@stable"]).await;
    shell.good(&["models", "unalias", "org/tiny@canary"]).await;
    shell.good(&["models", "delete", "org/tiny@1"]).await;
    let dry = shell.json(&["models", "gc", "--dry-run", "--json"]).await;
    assert_eq!(dry["bytes"], json!(bundle.info.total_bytes));
    assert_eq!(shell.json(&["models", "gc", "--json"]).await["blobs"], dry["blobs"]);
    assert_eq!(shell.json(&["models", "gc", "--json"]).await["blobs"], 0);
    plane.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_bundle_is_told_from_a_bad_connection() {
    let state = TempDir::new().unwrap();
    let any = "127.0.0.1:0";
    let folder = state.path().to_str().unwrap();
    let plane = ["control-plane", "--listen", any, "--link-listen", any, "--state", folder];
    let mut plane = Serving::start(&plane).await.unwrap();
    let shell = Shell { endpoint: format!("http://{}", plane.listen), folder: TempDir::new().unwrap() };
    for (at, damage) in ["a bit", "a byte"].into_iter().enumerate() {
        let bundle = TestBundle::with_noise(10 + at as u64, &[3 * PIECE]);
        let file = bundle.path.join(bundle.info.blobs.last().unwrap().path());
        let mut bytes = std::fs::read(&file).unwrap();
        if damage == "a bit" {
            bytes[PIECE] ^= 1;
        } else {
            bytes.pop();
        }
        std::fs::write(&file, bytes).unwrap();
        let push = ["models", "push", bundle.path.to_str().unwrap(), "--version", "1"];
        shell.bad(&push, 1, "the bundle is damaged").await;
    }
    plane.kill().await.unwrap();
}
