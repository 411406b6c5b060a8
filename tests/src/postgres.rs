//! A real PostgreSQL for tests: one server per test program, in a temporary folder, reached by its socket only.
//!
//! The server's parent is a shell that waits for the end of a pipe from the test program: however that ends, the server goes
//! and the folder with it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

/// Longest time that the server may take to start.
const START: Duration = Duration::from_secs(60);

/// Runs the server until standard input ends. `$1`: programs, `$2`: folder.
const KEEPER: &str = r#"
"$1/postgres" -D "$2/data" -c listen_addresses= -c unix_socket_directories="$2" -c shared_buffers=32MB </dev/null &
server=$!
cat >/dev/null
kill -QUIT $server
wait $server
rm -rf "$2"
"#;

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    databases: AtomicU32,
    /// The server ends when this closes.
    _keeper: ChildStdin,
}

impl Postgres {
    /// The server of this test program, started by whoever asks first.
    ///
    /// # Panics
    /// Says what to install if PostgreSQL is missing, and what it said if it does not start.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    /// Makes an empty database.
    ///
    /// # Panics
    /// If the server does not make it.
    ///
    /// # Returns
    /// Its URL.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        run(Command::new(self.programs.join("createdb"))
            .arg("-h")
            .arg(&self.folder)
            .args(["-U", "rookery", &name]));
        format!("postgres://rookery@localhost/{name}?host={}", self.folder.display())
    }

    fn start() -> Self {
        let programs = programs();
        let folder =
            tempfile::Builder::new().prefix("rookery-pg-").tempdir().expect("a temporary folder").keep();
        let user = server_user();
        if let Some(user) = &user {
            run(Command::new("chown").arg(format!("{user}:")).arg(&folder));
        }
        run(as_user(&user, &programs.join("initdb"))
            .args(["-U", "rookery", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(folder.join("data")));
        let mut keeper = as_user(&user, Path::new("sh"))
            .args(["-c", KEEPER, "keeper"])
            .args([&programs, &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server's keeper starts");
        let stdin = keeper.stdin.take().expect("a pipe was asked for");
        let log = keeper.stderr.take().expect("a pipe was asked for");
        wait_until_ready(BufReader::new(log), keeper);
        Self { programs, folder, databases: AtomicU32::new(0), _keeper: stdin }
    }
}

/// Reads the server's log up to the line that says that it is there, and on to its end.
fn wait_until_ready(log: impl BufRead + Send + 'static, mut keeper: Child) {
    let (lines, said) = mpsc::channel();
    std::thread::spawn(move || {
        // The server must never wait for someone to read its log.
        log.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        drop(keeper.wait());
    });
    let mut before = Vec::new();
    loop {
        match said.recv_timeout(START) {
            Ok(line) if line.contains("is ready to accept connections") => return,
            Ok(line) => before.push(line),
            Err(error) => panic!("PostgreSQL does not start ({error}):\n{}", before.join("\n")),
        }
    }
}

/// Where the newest server's programs are.
fn programs() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = debian
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).collect::<Vec<_>>();
    found
        .into_iter()
        .rev()
        .map(|(_, folder)| folder)
        .chain(others)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .unwrap_or_else(|| {
            panic!(
                "PostgreSQL is missing, and this test needs a real one; on Debian: apt-get install postgresql"
            )
        })
}

/// The server does not run as root: Debian's package has a user for it.
fn server_user() -> Option<String> {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    (output.stdout == b"0\n").then(|| "postgres".to_owned())
}

fn as_user(user: &Option<String>, program: &Path) -> Command {
    match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={user}"))
                .arg("--init-groups")
                .arg(program);
            // Wherever the tests run may be closed to that user.
            command.current_dir("/");
            command
        }
        None => Command::new(program),
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
