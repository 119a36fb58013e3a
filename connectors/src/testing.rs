//! A real PostgreSQL for tests and benchmarks: in a folder of its own, on a free port, gone at the end.

use std::{
    fs, io,
    io::{Read, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A slow disk of a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL refuses to run as root; this is the user that its Debian package makes.
const USER: &str = "postgres";

/// Runs the server and stops it when its input ends, whatever happened to the process that holds the
/// other end: so no server and no folder outlives a test that was killed. `$1` is the folder,
/// the rest is the server's command. The word `keep` leaves the folder for another start.
const KEEPER: &str = r#"
folder=$1; shift
trap '' INT TERM HUP
"$@" </dev/null >"$folder/server.log" 2>&1 &
server=$!
read -r word
kill -QUIT "$server" 2>/dev/null
wait "$server"
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// Stopped and removed when dropped, or when this process ends in any other way.
#[derive(Debug)]
pub struct PostgresServer {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    keeper: Option<Child>,
}

impl PostgresServer {
    /// Where a program of the server is.
    pub fn program(name: &str) -> io::Result<PathBuf> {
        Ok(bin()?.join(name))
    }

    /// Uses the programs in `HUTONG_TEST_PG_BIN`, or the newest that the system's package installed.
    /// `fsync` is on, as it is for everybody. Trusts everyone on this machine.
    pub fn start() -> PostgresServer {
        let small = ["max_connections=50", "shared_buffers=32MB"];
        PostgresServer::try_start(&small).unwrap_or_else(|error| panic!("{error}"))
    }

    /// With settings as they stand in `postgresql.conf`.
    pub fn try_start(settings: &[&str]) -> io::Result<PostgresServer> {
        let bin = bin()?;
        let folder = folder()?;
        let data = folder.join("data");
        let mut initdb = as_user(&PostgresServer::program("initdb")?);
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        initdb
            .arg("--username=postgres")
            .arg("--pgdata")
            .arg(&data)
            .current_dir("/");
        let output = initdb.output()?;
        if !output.status.success() {
            let failed = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("initdb: {failed}")));
        }
        let mut server = PostgresServer {
            bin,
            folder,
            port: free_port()?,
            settings: settings.iter().map(ToString::to_string).collect(),
            keeper: None,
        };
        server.try_run()?;
        Ok(server)
    }

    /// Of the server's first process; the others are its children.
    #[allow(
        dead_code,
        reason = "tests include this file as well, and some use less of it"
    )]
    pub fn process(&self) -> io::Result<u32> {
        let file = self.folder.join("data/postmaster.pid");
        let text = fs::read_to_string(&file)?;
        let first = text.lines().next().and_then(|line| line.parse().ok());
        first.ok_or_else(|| io::Error::other(format!("{}: no process", file.display())))
    }

    /// Where its socket is; the port is the same.
    #[allow(
        dead_code,
        reason = "tests include this file as well, and some use less of it"
    )]
    pub fn socket_folder(&self) -> (&Path, u16) {
        (&self.folder, self.port)
    }

    /// For [`crate::postgres::Server`] and for `psql`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Another database, which need not exist.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Stops the server as a crash would: connections break, nothing is tidied up.
    pub fn crash(&mut self) {
        self.stop("keep\n");
    }

    /// On the same port, after [`PostgresServer::crash`].
    pub fn run(&mut self) {
        self.try_run().unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_run(&mut self) -> io::Result<()> {
        assert!(self.keeper.is_none(), "it runs already");
        let begun = Instant::now();
        loop {
            self.spawn()?;
            while begun.elapsed() < START_MAX && self.keeper_runs() {
                if self.answers() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let log = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            self.stop("keep\n");
            // Unless somebody else took the port between its choice and now.
            if !log.contains("could not bind") {
                return Err(io::Error::other(format!(
                    "the server does not start:\n{log}"
                )));
            }
            self.port = free_port()?;
        }
    }

    fn spawn(&mut self) -> io::Result<()> {
        let mut server = as_user(&self.bin.join("postgres"));
        server
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-k")
            .arg(&self.folder);
        server.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        for setting in &self.settings {
            server.arg("-c").arg(setting);
        }
        // The log of the last start must not be taken for this one's.
        fs::write(self.folder.join("server.log"), "")?;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(&self.folder);
        keeper.arg(server.get_program()).args(server.get_args());
        // A group of its own: who kills the test's group must not kill the keeper first.
        keeper.current_dir("/").process_group(0);
        keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.keeper = Some(keeper.spawn()?);
        Ok(())
    }

    /// The keeper stays until it is told; the server behind it may have ended, which the log says.
    fn keeper_runs(&mut self) -> bool {
        let log = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        // A server that is well logs FATAL too: each session it refuses.
        ![
            "could not bind",
            "could not create",
            "lock file",
            "is shut down",
        ]
        .iter()
        .any(|end| log.contains(end))
    }

    /// An answer to a request for TLS: the server speaks, but need not take sessions yet.
    fn answers(&self) -> bool {
        let ready = Command::new(self.bin.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status();
        ready.is_ok_and(|status| status.success())
    }

    fn stop(&mut self, word: &str) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if let Some(mut input) = keeper.stdin.take()
            && let Err(error) = input.write_all(word.as_bytes())
        {
            eprintln!("the keeper of PostgreSQL is gone: {error}");
        }
        if let Err(error) = keeper.wait() {
            eprintln!("the keeper of PostgreSQL cannot be waited for: {error}");
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop("");
        // The keeper removed it, unless the server had crashed.
        if self.folder.exists()
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            eprintln!("{} cannot be removed: {error}", self.folder.display());
        }
    }
}

fn bin() -> io::Result<PathBuf> {
    if let Some(bin) = std::env::var_os("HUTONG_TEST_PG_BIN") {
        return Ok(bin.into());
    }
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = installed
        .map(|entry| entry.path())
        .max_by_key(|path| version(path));
    newest.map(|path| path.join("bin")).ok_or_else(|| {
        io::Error::other("no PostgreSQL: install the package postgresql, or set HUTONG_TEST_PG_BIN")
    })
}

/// Runs as this user, or as USER when that is root.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={USER}"))
        .arg(format!("--regid={USER}"));
    command.arg("--init-groups").arg(program);
    command
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    uid == Some("0")
}

/// Under the folder for temporary files, where the server's user may go.
fn folder() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let name = format!("hutong-postgres-{:016x}", u64::from_le_bytes(random));
    let folder = std::env::temp_dir().join(name);
    fs::create_dir(&folder)?;
    if is_root() {
        let owner = Command::new("chown").arg(USER).arg(&folder).status()?;
        if !owner.success() {
            return Err(io::Error::other(format!(
                "no user {USER} to run the server as"
            )));
        }
    }
    Ok(folder)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
