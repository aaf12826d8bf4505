//! The fleet under test: processes, links and disks, each with a lock for whoever does
//! something to it, and the history that all write to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::{Mutex as TurnMutex, RwLock};
use tokio::time::Instant;

use super::disk::Disks;
use super::history::{Absence, AbsenceKind, At, History, Incident, Isolation, NodeHistory, Span};
use crate::cluster::{Cluster, free_port, node_name};
use crate::multicall::Programs;
use crate::relay::Relay;

/// The one model.
pub(super) const MODEL: &str = "digits";
/// The lease of every rollout.
pub(super) const LEASE: Duration = Duration::from_secs(3);
/// A disk of an agent or of the coordinator: models of 80 KB, many times over.
const DISK_MIB: u32 = 96;
/// A command that has not answered by then (a stopped coordinator) is given up: nobody
/// knows whether it was done.
const COMMAND_MAX: Duration = Duration::from_secs(20);
/// How long the set-up and the healing wait for all agents.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) index: u16,
    pub(super) http: SocketAddr,
    pub(super) dir: PathBuf,
    pub(super) relay: Relay,
    /// Held by whoever does something to its process or disk.
    pub(super) process: TurnMutex<()>,
    /// Held by whoever does something to its link.
    pub(super) link: TurnMutex<()>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done, with what it printed.
    Done(String),
    /// Decided, and not settled; with what it printed.
    Waiting(String),
    /// Refused, and why.
    Refused(String),
    /// Nobody knows whether it was done.
    Unknown,
}

/// The fleet under test.
pub(super) struct Ground {
    cluster: Mutex<Cluster>,
    pub(super) nodes: Vec<Node>,
    /// Held by whoever does something to the coordinator.
    pub(super) coordinator: TurnMutex<()>,
    /// Commands share it; a coordinator on damaged files has it alone, because what it
    /// says does not count.
    pub(super) open: RwLock<()>,
    pub(super) dir: PathBuf,
    /// Disks that can be full; `None`: mounting is not permitted here.
    pub(super) disks: Option<Disks>,
    began: Instant,
    history: Mutex<History>,
    tally: Mutex<BTreeMap<&'static str, u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ground {
    /// Makes a fleet in `dir` and waits until all agents are connected.
    pub(super) async fn prepare(
        programs: Programs,
        dir: &Path,
        agents: u16,
        seed: u64,
    ) -> Result<Arc<Self>> {
        let mut folders = vec![dir.join("coordinator")];
        folders.extend((0..agents).map(|index| dir.join(node_name(index))));
        let disks = Disks::mount(&folders, DISK_MIB)?;
        let mut cluster = Cluster::prepare(programs, dir, None).await?;
        cluster.begin().await?;
        let mut nodes = Vec::new();
        for index in 0..agents {
            let relay = Relay::start(cluster.quic(), seed ^ u64::from(index)).await?;
            let http = free_port(None, 0)?;
            cluster.enroll(index, http, relay.address())?;
            cluster.start_agent(index)?;
            let name = node_name(index);
            nodes.push(Node {
                dir: dir.join(&name),
                name,
                index,
                http,
                relay,
                process: TurnMutex::default(),
                link: TurnMutex::default(),
            });
        }
        cluster.wait_for_agents(nodes.len()).await?;
        let history = History {
            lease: LEASE,
            nodes: vec![NodeHistory::default(); nodes.len()],
            ..History::default()
        };
        Ok(Arc::new(Self {
            cluster: Mutex::new(cluster),
            nodes,
            coordinator: TurnMutex::default(),
            open: RwLock::default(),
            dir: dir.to_owned(),
            disks,
            began: Instant::now(),
            history: Mutex::new(history),
            tally: Mutex::default(),
        }))
    }

    pub(super) fn now(&self) -> At {
        self.began.elapsed()
    }

    /// When a moment of tokio's clock was.
    pub(super) fn at(&self, moment: Instant) -> At {
        moment.saturating_duration_since(self.began)
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        locked(&self.history)
    }

    /// Counts something for the table.
    pub(super) fn count(&self, what: &'static str) {
        *locked(&self.tally).entry(what).or_default() += 1;
    }

    pub(super) fn tally(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.tally).clone()
    }

    pub(super) fn incident(&self, promise: u8, what: String) {
        let at = self.now();
        self.history()
            .incidents
            .push(Incident { promise, at, what });
    }

    pub(super) fn coordinator_dir(&self) -> PathBuf {
        locked(&self.cluster).coordinator_dir()
    }

    /// Runs `rollcall ARGUMENTS... -o json` as the operator.
    pub(super) async fn command(&self, arguments: &[&str]) -> Outcome {
        let _open = self.open.read().await;
        self.command_to_anyone(arguments).await
    }

    /// The same, whatever state the coordinator is in.
    pub(super) async fn command_to_anyone(&self, arguments: &[&str]) -> Outcome {
        let mut command = locked(&self.cluster).operator(arguments);
        command.args(["-o", "json"]).stdin(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        let output = command.kill_on_drop(true).output();
        let Ok(Ok(output)) = tokio::time::timeout(COMMAND_MAX, output).await else {
            return Outcome::Unknown;
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.code() {
            Some(0) => Outcome::Done(text(&output.stdout)),
            Some(4) => Outcome::Waiting(text(&output.stdout)),
            Some(1 | 2) => Outcome::Refused(text(&output.stderr)),
            Some(_) | None => Outcome::Unknown,
        }
    }

    /// What a command answered, if it did.
    pub(super) async fn ask(&self, arguments: &[&str]) -> Option<Value> {
        self.command(arguments).await.json()
    }

    pub(super) fn kill_coordinator(&self) {
        locked(&self.cluster).kill_coordinator();
    }

    pub(super) fn start_coordinator(&self) -> Result<()> {
        locked(&self.cluster).start_coordinator()
    }

    /// Whether the coordinator ended by itself.
    pub(super) fn coordinator_ended(&self) -> Option<String> {
        let ended = locked(&self.cluster).coordinator_ended();
        ended.map(|status| status.to_string())
    }

    pub(super) fn agent_ended(&self, node: &Node) -> Option<String> {
        let ended = locked(&self.cluster).agent_ended(node.index);
        ended.map(|status| status.to_string())
    }

    pub(super) fn signal_coordinator(&self, signal: Signal) -> Result<()> {
        let pid = locked(&self.cluster).coordinator_pid();
        send(pid.context("the coordinator does not run")?, signal)
    }

    fn absence(&self, node: &Node, kind: AbsenceKind) {
        let from = self.now();
        let span = Span { from, until: None };
        self.history().nodes[usize::from(node.index)]
            .absences
            .push(Absence { kind, span });
    }

    fn back(&self, node: &Node, until: At) {
        let mut history = self.history();
        let absences = &mut history.nodes[usize::from(node.index)].absences;
        if let Some(last) = absences.last_mut() {
            last.span.until.get_or_insert(until);
        }
    }

    pub(super) fn kill_agent(&self, node: &Node) {
        self.absence(node, AbsenceKind::Killed);
        locked(&self.cluster).kill_agent(node.index);
    }

    pub(super) fn start_agent(&self, node: &Node) -> Result<()> {
        locked(&self.cluster).start_agent(node.index)?;
        self.back(node, self.now());
        Ok(())
    }

    pub(super) fn start_agent_through(&self, node: &Node, through: &[&str]) -> Result<()> {
        locked(&self.cluster).start_agent_through(node.index, through)?;
        self.back(node, self.now());
        Ok(())
    }

    pub(super) fn stop_agent(&self, node: &Node) -> Result<()> {
        let pid = locked(&self.cluster).agent_pid(node.index);
        let pid = pid.context("the agent does not run")?;
        self.absence(node, AbsenceKind::Stopped);
        send(pid, Signal::STOP)
    }

    pub(super) fn continue_agent(&self, node: &Node) -> Result<()> {
        let pid = locked(&self.cluster).agent_pid(node.index);
        // Before it goes on: what it takes up is taken up after this.
        let until = self.now();
        send(pid.context("the agent does not run")?, Signal::CONT)?;
        self.back(node, until);
        Ok(())
    }

    /// From now on no lease of these nodes is renewed; `deaf`: they hear nothing at all.
    pub(super) fn isolate(&self, nodes: &[usize], deaf: bool) {
        let from = self.now();
        let mut history = self.history();
        for node in nodes {
            let span = Span { from, until: None };
            history.nodes[*node]
                .isolations
                .push(Isolation { span, deaf });
        }
    }

    /// The newest open isolation of these nodes that began at `from` or later ends.
    pub(super) fn reconnect(&self, nodes: &[usize], from: At) {
        let until = self.now();
        let mut history = self.history();
        for node in nodes {
            let mut isolations = history.nodes[*node].isolations.iter_mut();
            let own = isolations
                .find(|isolation| isolation.span.from >= from && isolation.span.until.is_none());
            if let Some(isolation) = own {
                isolation.span.until = Some(until);
            }
        }
    }

    pub(super) fn everyone(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// Names of the nodes that the coordinator says are connected; `None`: no answer.
    pub(super) async fn connected(&self) -> Option<Vec<String>> {
        let nodes = self.command_to_anyone(&["agent", "list"]).await.json()?;
        let connected = nodes.as_array()?.iter();
        let connected = connected.filter(|node| node["connected"] == true);
        Some(
            connected
                .filter_map(|node| node["node"].as_str().map(str::to_owned))
                .collect(),
        )
    }

    /// Waits until all nodes are connected. `false`: in vain.
    pub(super) async fn all_connected(&self) -> bool {
        let wait = async {
            while self.connected().await.map_or(0, |nodes| nodes.len()) < self.nodes.len() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.is_ok()
    }
}

impl Outcome {
    /// What was printed, where something is decided.
    pub(super) fn json(&self) -> Option<Value> {
        match self {
            Self::Done(text) | Self::Waiting(text) => serde_json::from_str(text).ok(),
            Self::Refused(_) | Self::Unknown => None,
        }
    }
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(kill_process(pid.context("no process")?, signal)?)
}
