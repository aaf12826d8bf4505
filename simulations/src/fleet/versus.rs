//! The same fan-out through brokers that people know, as a yardstick: so many
//! receivers, each on a TCP connection of its own and all in this process, the
//! broker in a process of its own, both on this machine's cores; one message of 128
//! bytes a round, from just before it is written to the moment that each receiver
//! has parsed it. Agents and coordinator are measured in the same arrangement.
//!
//! The comparison leans to the brokers' side. Receivers are as cheap as could be made
//! (one thread, one epoll loop, no task a connection),
//! nothing is encrypted, and only MQTT's QoS 1 acknowledges. Where a broker has
//! settings that could matter they are all tried, and the fastest is kept.
//!
//! Brokers run one after the other, after the fleet and never beside it: ten thousand
//! connections to each at once are more open files than a process may have.

mod etcd;
mod mosquitto;
mod nats;
mod redis;
mod server;
mod sockets;

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::ProgressBar;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use super::figures::{self, BrokersAlone, Spread};
use server::Server;
use sockets::Sockets;

/// Bytes of one message.
const PAYLOAD: usize = 128;
/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A broker is idle when it has used less than a tenth of a core for so long.
const IDLE_WINDOW: Duration = Duration::from_millis(20);
/// Files that a process has open besides one a receiver.
const OTHER_FILES: u64 = 256;

/// A broker that can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Broker {
    /// NATS core: at most once.
    Nats,
    /// Redis pub/sub: at most once.
    Redis,
    /// Watches of one etcd: written to disk first, then told in order.
    Etcd,
    /// MQTT 3.1.1 with QoS 1: every receiver acknowledges.
    Mosquitto,
}

impl Broker {
    const fn program(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Redis => "redis-server",
            Self::Etcd => "etcd",
            Self::Mosquitto => "mosquitto",
        }
    }

    /// Debian's.
    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "etcd-server",
            Self::Nats | Self::Redis | Self::Mosquitto => self.program(),
        }
    }

    /// The arguments that are tried, of which the fastest are kept.
    const fn settings(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Redis => redis::SETTINGS,
            Self::Nats | Self::Etcd | Self::Mosquitto => &[&[]],
        }
    }

    const fn version_flag(self) -> &'static str {
        match self {
            Self::Nats | Self::Redis | Self::Etcd => "--version",
            Self::Mosquitto => "-h",
        }
    }

    /// Its program and version, or which package brings it.
    fn find(self) -> Result<Installed> {
        // Debian keeps some where only root's PATH leads.
        let places = [
            self.program().to_owned(),
            format!("/usr/sbin/{}", self.program()),
        ];
        for program in places {
            if let Ok(output) = Command::new(&program).arg(self.version_flag()).output() {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let version = version_in(&said)
                    .with_context(|| format!("{program} tells no version: {said:?}"))?;
                return Ok(Installed {
                    broker: self,
                    program,
                    version: version.to_owned(),
                });
            }
        }
        bail!(
            "{} is not installed: `apt-get install {}`, or run simulations/fleet-versus.sh, which installs all brokers",
            self.program(),
            self.package()
        )
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Etcd => "etcd",
            Self::Mosquitto => "mosquitto",
        })
    }
}

/// The first `1.2.3` in what a program says of itself.
fn version_in(said: &str) -> Option<&str> {
    said.split(|c: char| !c.is_ascii_digit() && c != '.')
        .find(|word| word.split('.').filter(|part| !part.is_empty()).count() == 3)
}

#[derive(Debug)]
struct Installed {
    broker: Broker,
    program: String,
    version: String,
}

/// Brokers that are there to be measured.
#[derive(Debug)]
pub struct Contest {
    brokers: Vec<Installed>,
    receivers: u32,
    rounds: u32,
}

/// What one broker's rounds came to.
#[derive(Clone, Debug, Serialize)]
pub struct BrokerFigures {
    /// The broker's own.
    pub version: String,
    /// The arguments that were fastest, where several were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// From just before the publish to the message parsed by a receiver.
    pub propagation_ms: Spread,
    /// Median over the rounds of the last receiver.
    pub last_ms_median: f64,
    /// CPU of the broker from the publish until it is idle again.
    pub server_cpu_ms_per_publish: f64,
    /// Growth of the broker's resident memory by connecting.
    pub server_bytes_per_connection: u64,
    /// Connections opened and subscribed a second.
    pub connections_per_s: f64,
}

/// What was measured of every broker.
pub type Versus = BTreeMap<Broker, BrokerFigures>;

/// A broker's receivers and its publisher.
trait Fanout {
    /// Connects receivers until all are subscribed.
    fn subscribe(&mut self, receivers: u32) -> Result<()>;

    /// Publishes message `number` and gives how long each receiver waited for it.
    fn publish(&mut self, number: u64) -> Result<Vec<Duration>>;

    /// Lets time pass and answers what the broker asks in the meantime.
    fn serve(&mut self, time: Duration) -> Result<()>;
}

impl Contest {
    /// Looks whether everything is there before anything is measured, and raises this
    /// process's soft limit of open files to what the receivers need.
    ///
    /// # Errors
    /// When a broker is not installed, or the hard limit of open files is too low.
    pub fn prepare(brokers: &[Broker], receivers: u32, rounds: u32) -> Result<Self> {
        if !brokers.is_empty() {
            raise_open_files(receivers)?;
        }
        let brokers = brokers.iter().map(|broker| broker.find());
        Ok(Self {
            brokers: brokers.collect::<Result<_>>()?,
            receivers,
            rounds,
        })
    }

    /// Measures one broker after the other.
    ///
    /// # Errors
    /// When a broker does not come up, or a round does not come to its end.
    pub fn measure(&self, progress: &ProgressBar) -> Result<Versus> {
        let mut all = Versus::new();
        for installed in &self.brokers {
            let mut best: Option<BrokerFigures> = None;
            for settings in installed.broker.settings() {
                let figures = self
                    .measure_with(installed, settings, progress)
                    .with_context(|| format!("{} was not measured", installed.program))?;
                if best
                    .as_ref()
                    .is_none_or(|best| figures.last_ms_median < best.last_ms_median)
                {
                    best = Some(figures);
                }
            }
            all.extend(best.map(|best| (installed.broker, best)));
        }
        Ok(all)
    }

    /// Measures the brokers with nothing to compare them with.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn measure_alone(&self, progress: &ProgressBar) -> Result<BrokersAlone> {
        Ok(BrokersAlone {
            receivers: self.receivers,
            rounds: self.rounds,
            versus: self.measure(progress)?,
        })
    }

    fn measure_with(
        &self,
        installed: &Installed,
        settings: &[&str],
        progress: &ProgressBar,
    ) -> Result<BrokerFigures> {
        progress.set_message(installed.program.clone());
        progress.set_length(u64::from(self.rounds));
        progress.set_position(0);
        let (mut server, mut fanout) = start(installed, settings, self.receivers)?;
        until_idle(&server, &mut *fanout)?;
        let before = figures::resident_bytes(server.pid())?;
        let connecting = now();
        server.explain(fanout.subscribe(self.receivers))?;
        let connections_per_s = f64::from(self.receivers) / connecting.elapsed().as_secs_f64();
        until_idle(&server, &mut *fanout)?;
        let connected = figures::resident_bytes(server.pid())?;

        // The first message grows buffers on both sides, and is not counted.
        server.explain(fanout.publish(1))?;
        until_idle(&server, &mut *fanout)?;
        let mut rounds = Vec::new();
        let mut cpu = Duration::ZERO;
        for round in 0..u64::from(self.rounds) {
            let cpu_before = figures::cpu(server.pid())?;
            rounds.push(server.explain(fanout.publish(2 + round))?);
            until_idle(&server, &mut *fanout)?;
            cpu += figures::cpu(server.pid())?.saturating_sub(cpu_before);
            progress.inc(1);
        }
        let last = |round: &Vec<Duration>| round.iter().copied().max().map(figures::millis);
        Ok(BrokerFigures {
            version: installed.version.clone(),
            settings: (!settings.is_empty()).then(|| settings.join(" ")),
            last_ms_median: figures::median(rounds.iter().filter_map(last)),
            propagation_ms: Spread::of(rounds.into_iter().flatten()),
            server_cpu_ms_per_publish: figures::millis(cpu) / f64::from(self.rounds.max(1)),
            server_bytes_per_connection: connected.saturating_sub(before)
                / u64::from(self.receivers),
            connections_per_s,
        })
    }
}

/// Starts a broker and connects the publisher.
fn start(
    installed: &Installed,
    settings: &[&str],
    receivers: u32,
) -> Result<(Server, Box<dyn Fanout>)> {
    let dir = tempfile::tempdir()?;
    let address = crate::cluster::free_port(None, 0)?;
    let mut command = Command::new(&installed.program);
    command.args(settings).current_dir(dir.path());
    match installed.broker {
        Broker::Nats => nats::configure(&mut command, address),
        Broker::Redis => redis::configure(&mut command, address, receivers),
        Broker::Etcd => etcd::configure(&mut command, address, crate::cluster::free_port(None, 0)?),
        Broker::Mosquitto => mosquitto::configure(&mut command, address, dir.path())?,
    }
    let mut server = Server::start(command, dir)?;
    let fanout: Box<dyn Fanout> = match installed.broker {
        Broker::Nats => Box::new(server.until_ready(|| Sockets::<nats::Nats>::open(address))?),
        Broker::Redis => Box::new(server.until_ready(|| Sockets::<redis::Redis>::open(address))?),
        Broker::Etcd => Box::new(server.until_ready(|| Sockets::<etcd::Etcd>::open(address))?),
        Broker::Mosquitto => {
            Box::new(server.until_ready(|| Sockets::<mosquitto::Mqtt>::open(address))?)
        }
    };
    Ok((server, fanout))
}

/// Waits until the broker has next to nothing to do.
fn until_idle(server: &Server, fanout: &mut dyn Fanout) -> Result<()> {
    let deadline = now() + PATIENCE;
    while now() < deadline {
        let before = figures::cpu(server.pid())?;
        fanout.serve(IDLE_WINDOW)?;
        if figures::cpu(server.pid())?.saturating_sub(before) < IDLE_WINDOW / 10 {
            return Ok(());
        }
    }
    bail!("the broker was not idle within {PATIENCE:?}")
}

/// A message that says which it is.
fn payload(number: u64) -> [u8; PAYLOAD] {
    let mut payload = [b'.'; PAYLOAD];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    payload
}

/// Which message this is.
fn number_of(payload: &[u8]) -> Result<u64> {
    ensure!(
        payload.len() == PAYLOAD,
        "a message of {} bytes arrived, {PAYLOAD} were sent",
        payload.len()
    );
    let number = payload.first_chunk().context("it is longer than that")?;
    Ok(u64::from_be_bytes(*number))
}

/// How many files receivers need open, where that is allowed.
fn files_for(receivers: u32, hard_limit: Option<u64>) -> Result<u64> {
    let need = u64::from(receivers) + OTHER_FILES;
    if let Some(hard) = hard_limit.filter(|hard| *hard < need) {
        bail!(
            "{receivers} receivers need {need} open files, and at most {hard} are allowed: ask for fewer with --agents, or raise the hard limit (`ulimit -Hn`)"
        );
    }
    Ok(need)
}

/// Raises the soft limit of open files; brokers are started with it too.
fn raise_open_files(receivers: u32) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let need = files_for(receivers, maximum)?;
    if current.is_none_or(|soft| soft >= need) {
        return Ok(());
    }
    let current = maximum.or(Some(need));
    setrlimit(Resource::Nofile, Rlimit { current, maximum })
        .context("the limit of open files cannot be raised")
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures wall time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition, on a thread that nobody shares"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_each_program_says() {
        for (said, version) in [
            ("nats-server: v2.9.10\n", "2.9.10"),
            ("Redis server v=7.0.15 sha=00000000:0 bits=64", "7.0.15"),
            ("etcd Version: 3.4.23\nGo Version: go1.19.8", "3.4.23"),
            (
                "mosquitto version 2.0.11\n\nmosquitto is an MQTT v5.0/v3.1.1 broker.",
                "2.0.11",
            ),
        ] {
            assert_eq!(version_in(said), Some(version));
        }
        assert_eq!(version_in("usage: ..."), None);
    }

    #[test]
    fn a_message_tells_its_number_and_a_torn_one_is_refused() {
        assert_eq!(number_of(&payload(7)).unwrap(), 7);
        assert!(number_of(&payload(7)[1..]).is_err());
    }

    #[test]
    fn more_receivers_than_open_files_are_refused_with_both_numbers() {
        assert_eq!(files_for(10_000, Some(20_000)).unwrap(), 10_256);
        assert_eq!(files_for(18_000, None).unwrap(), 18_256);
        let error = files_for(4_000, Some(4_096)).unwrap_err().to_string();
        assert!(error.contains("need 4256 open files"), "{error}");
        assert!(error.contains("at most 4096 are allowed"), "{error}");
    }
}
