//! A coordinator and agents on loopback, each a process of its own, set up with
//! the commands that an operator would type.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rollcall_coordinator::cli::client::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::multicall::Programs;
use crate::relay::Relay;

/// How long any one step of the set-up may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where servers are put.
const PORTS: Range<u16> = 20_000..32_000;

/// As `init` writes it.
const REPORT_EVERY_DEFAULT: &str = "# report_every = \"5s\"";

/// A process that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) const fn of(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed, not asked: everything in Rollcall must survive that.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The fleet of the demo.
pub struct Cluster {
    /// Everything lies here.
    pub dir: PathBuf,
    /// The coordinator's HTTPS address.
    pub https: SocketAddr,
    /// Where each agent answers inference requests.
    pub agents: Vec<SocketAddr>,
    /// Stands between the last agent and the coordinator.
    pub last_link: Relay,
    programs: Programs,
    quic: SocketAddr,
    admin_token: String,
    coordinator: Option<Process>,
    nodes: BTreeMap<u16, Process>,
}

/// The name of a node.
#[must_use]
pub fn node_name(index: u16) -> String {
    format!("node-{}", index + 1)
}

/// A loopback port that is free for TCP and UDP. Chosen below the range from which the
/// kernel gives ports to clients, so that no client's socket takes it before the server
/// binds it.
/// # Errors
/// When none is free.
pub fn free_port(base: Option<u16>, offset: u16) -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if let Some(base) = base {
        return Ok(SocketAddr::from(([127, 0, 0, 1], base + offset)));
    }
    for _ in PORTS {
        let asked = NEXT.fetch_add(1, Ordering::Relaxed);
        let step = std::process::id().wrapping_mul(97).wrapping_add(asked);
        let port = PORTS.start + u16::try_from(step % u32::from(PORTS.end - PORTS.start))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!(
        "no loopback port is free between {} and {}",
        PORTS.start,
        PORTS.end
    )
}

impl Cluster {
    /// Sets up a fleet of `agents` nodes in `dir` and starts it.
    ///
    /// # Errors
    /// When a command fails or a process does not come up.
    pub async fn start(
        programs: Programs,
        dir: &Path,
        agents: u16,
        base_port: Option<u16>,
    ) -> Result<Self> {
        let mut cluster = Self::prepare(programs, dir, base_port).await?;
        cluster.begin().await?;
        for index in 0..agents {
            let http = free_port(base_port, 2 + index)?;
            let last = index + 1 == agents;
            let coordinator = if last {
                cluster.last_link.address()
            } else {
                cluster.quic
            };
            cluster.enroll(index, http, coordinator)?;
            cluster.start_agent(index)?;
            cluster.agents.push(http);
        }
        cluster.wait_for_agents(usize::from(agents)).await?;
        Ok(cluster)
    }

    /// Makes a fleet in `dir` without starting anything.
    ///
    /// # Errors
    /// When `rollcall init` fails.
    pub async fn prepare(programs: Programs, dir: &Path, base_port: Option<u16>) -> Result<Self> {
        let (quic, https) = (free_port(base_port, 0)?, free_port(base_port, 1)?);
        let mut cluster = Self {
            dir: dir.to_owned(),
            https,
            agents: Vec::new(),
            last_link: Relay::start(quic, 1).await?,
            programs,
            quic,
            admin_token: String::new(),
            coordinator: None,
            nodes: BTreeMap::new(),
        };
        cluster.admin_token = cluster.init()?;
        Ok(cluster)
    }

    /// Starts the coordinator of a prepared fleet and logs the operator in.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn begin(&mut self) -> Result<()> {
        self.start_coordinator()?;
        let log = self.dir.join("coordinator.log");
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        self.login()
            .await
            .with_context(|| format!("the coordinator said: {}", said().trim()))
    }

    /// Where the coordinator's files lie.
    #[must_use]
    pub fn coordinator_dir(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    /// Where agents connect to the coordinator.
    #[must_use]
    pub const fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// The coordinator's process, while it runs.
    #[must_use]
    pub fn coordinator_pid(&self) -> Option<u32> {
        self.coordinator.as_ref().map(Process::pid)
    }

    /// Makes the fleet and gives the admin's token, which `init` shows once.
    fn init(&self) -> Result<String> {
        let mut init = self.programs.rollcall();
        init.args(["init", "--fleet", "demo", "--dir"])
            .arg(self.dir.join("coordinator"));
        init.args([
            "--quic",
            &self.quic.to_string(),
            "--https",
            &self.https.to_string(),
        ]);
        let told = run_command(&mut init)?;
        // Short windows let the judge see a story that takes a minute.
        let config = self.dir.join("coordinator/config.toml");
        let text = std::fs::read_to_string(&config)?;
        ensure!(
            text.contains(REPORT_EVERY_DEFAULT),
            "`init` wrote another configuration: {text}"
        );
        std::fs::write(
            &config,
            text.replace(REPORT_EVERY_DEFAULT, "report_every = \"500ms\""),
        )?;
        let mut words = told
            .split_whitespace()
            .skip_while(|word| *word != "--token")
            .skip(1);
        words
            .next()
            .map(str::to_owned)
            .context("`init` showed no token")
    }

    /// Starts the coordinator's process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let mut serve = self.programs.rollcall();
        serve
            .args(["serve", "--config"])
            .arg(self.dir.join("coordinator/config.toml"));
        self.coordinator = Some(spawn(&mut serve, &self.dir.join("coordinator.log"))?);
        Ok(())
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Starts the process of node `index + 1`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, index: u16) -> Result<()> {
        let node = node_name(index);
        let mut agent = self.programs.agent();
        agent
            .args(["run", "--config"])
            .arg(self.dir.join(&node).join("agent.toml"));
        self.nodes.insert(
            index,
            spawn(&mut agent, &self.dir.join(format!("{node}.log")))?,
        );
        Ok(())
    }

    /// Starts the process of node `index + 1` through another program, such as
    /// `unshare`, that turns into it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_through(&mut self, index: u16, through: &[&str]) -> Result<()> {
        let (program, arguments) = through.split_first().context("through no program")?;
        let node = node_name(index);
        let agent = self.programs.agent();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(agent.get_program())
            .args(agent.get_args())
            .args(["run", "--config"])
            .arg(self.dir.join(&node).join("agent.toml"));
        let log = self.dir.join(format!("{node}.log"));
        self.nodes.insert(index, spawn(&mut command, &log)?);
        Ok(())
    }

    /// The process of node `index + 1`, while nobody killed it.
    #[must_use]
    pub fn agent_pid(&self, index: u16) -> Option<u32> {
        self.nodes.get(&index).map(|process| process.0.id())
    }

    /// How the process of node `index + 1` ended, if it did so by itself.
    pub fn agent_ended(&mut self, index: u16) -> Option<ExitStatus> {
        self.nodes.get_mut(&index)?.0.try_wait().ok().flatten()
    }

    /// How the coordinator ended, if it did so by itself.
    pub fn coordinator_ended(&mut self) -> Option<ExitStatus> {
        self.coordinator.as_mut()?.0.try_wait().ok().flatten()
    }

    /// Kills an agent as a power cut would.
    pub fn kill_agent(&mut self, index: u16) {
        self.nodes.remove(&index);
    }

    async fn login(&self) -> Result<()> {
        let url = format!("https://{}", self.https);
        let mut login = self.operator(&["login", &url, "--token", &self.admin_token, "--ca"]);
        login.arg(self.dir.join("coordinator/ca.pem"));
        self.until("the coordinator answers", || {
            run_command(&mut login).map(|_| true)
        })
        .await
    }

    /// Enrols node `index + 1`, which answers at `http` and reaches the coordinator at
    /// `coordinator`.
    ///
    /// # Errors
    /// When a command fails.
    pub fn enroll(&self, index: u16, http: SocketAddr, coordinator: SocketAddr) -> Result<()> {
        let node = node_name(index);
        let token: Value = self.json(&["token", "create", "--kind", "agent", "--name", &node])?;
        let token = token["token"]
            .as_str()
            .context("`token create` gave no token")?;
        let zone = format!("zone=zone-{}", index % 2 + 1);
        let mut enroll = self.programs.agent();
        enroll.args([
            "enroll",
            "--coordinator",
            &coordinator.to_string(),
            "--token",
            token,
        ]);
        enroll.args([
            "--node",
            &node,
            "--label",
            &zone,
            "--http",
            &http.to_string(),
        ]);
        // On a free port, which its status tells.
        enroll.args(["--grpc", &SocketAddr::new(http.ip(), 0).to_string()]);
        run_command(enroll.arg("--dir").arg(self.dir.join(&node))).map(drop)
    }

    /// Waits until so many agents are connected.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn wait_for_agents(&self, agents: usize) -> Result<()> {
        self.until("all agents are connected", || {
            let nodes: Vec<Value> = self.json(&["agent", "list"])?;
            Ok(nodes
                .iter()
                .filter(|node| node["connected"] == true)
                .count()
                == agents)
        })
        .await
    }

    /// The admin's client, for answers that no command waits for.
    ///
    /// # Errors
    /// When the CA's certificate cannot be read.
    pub fn client(&self) -> Result<Client> {
        let ca = std::fs::read_to_string(self.coordinator_dir().join("ca.pem"))?;
        let url = format!("https://{}", self.https);
        Client::new(&url, &self.admin_token, Some(&ca)).context("no client")
    }

    /// Runs `rollcall ARGUMENTS... -o json` as the operator and reads its answer.
    ///
    /// # Errors
    /// When it fails; the error carries what it printed.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut command = self.operator(arguments);
        let output = run_command(command.args(["-o", "json"]))?;
        serde_json::from_str(&output)
            .with_context(|| format!("`rollcall {}` printed {output:?}", arguments.join(" ")))
    }

    /// Runs `rollcall ARGUMENTS...` as the operator and gives what it printed.
    ///
    /// # Errors
    /// When it fails; the error carries what it printed.
    pub fn print(&self, arguments: &[&str]) -> Result<String> {
        run_command(&mut self.operator(arguments))
    }

    /// A command that runs `rollcall ARGUMENTS...` as the operator.
    #[must_use]
    pub fn operator(&self, arguments: &[&str]) -> Command {
        let mut command = self.programs.rollcall();
        command
            .env("ROLLCALL_CONFIG_DIR", self.dir.join("operator"))
            .args(arguments);
        command
    }

    /// Waits for `condition`, asking again ten times a second; errors count as "not yet".
    ///
    /// # Errors
    /// When it does not come true in time; with its last error.
    pub async fn until(
        &self,
        what: &str,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut last = None;
        let wait = async {
            loop {
                match condition() {
                    Ok(true) => return,
                    Ok(false) => last = None,
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let timely = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        match (timely, last) {
            (true, _) => Ok(()),
            (false, None) => bail!("waited {PATIENCE:?} in vain until {what}"),
            (false, Some(error)) => {
                Err(error.context(format!("waited {PATIENCE:?} in vain until {what}")))
            }
        }
    }
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// When it fails; the error carries what it printed on stderr.
pub fn run(mut command: Command) -> Result<String> {
    run_command(&mut command)
}

fn run_command(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    bail!(
        "`{}` failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    // Appended: what a process said before it was killed is wanted most.
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)?;
    let command = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(Process(command.spawn()?))
}
