//! What is compared: where each server comes from, how it is started, and what its clients say.
//!
//! Each gets a configuration of its own in a scratch directory, on loopback, without persistence and with nothing
//! that would drop a message of a fan-out of this size. The rule: settings serve the server compared, and everything
//! else about it is as it is shipped.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use millrace_edge::rlimit;

use super::codec::{
    Centrifugo, Codec, Floor, Millrace, Mqtt, Nats, NchanPublisher, NchanSubscriber, Qos, Resp, Role, Room,
};
use crate::args::Settings;
use crate::child::{Child, Scratch};
use crate::clients::Transport;
use crate::rig::{self, RunError};
use crate::rng::Rng;
use crate::tokens::Signer;
use crate::world::World;
use crate::{floor, measure};

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Server {
    /// A loop of send(2).
    FloorSend,
    /// Batches of io_uring sends on direct descriptors.
    FloorUring,
    /// millrace over framed TCP.
    MillraceTcp,
    /// millrace over WebSocket.
    MillraceWs,
    /// Redis pub/sub.
    Redis,
    /// nginx with nchan over WebSocket.
    Nchan,
    /// nats-server.
    Nats,
    /// mosquitto, QoS 0.
    #[value(name = "mosquitto-qos0")]
    MosquittoQos0,
    /// mosquitto, QoS 1.
    #[value(name = "mosquitto-qos1")]
    MosquittoQos1,
    /// Centrifugo over WebSocket.
    Centrifugo,
}

/// Where nginx keeps its modules, on Debian and on systems that build it with its own defaults.
const NCHAN_MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
    "/etc/nginx/modules/ngx_nchan_module.so",
];

/// Where servers are beside the PATH: a user's PATH has no sbin.
const ASIDE: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Descriptors that a server needs beside one for each subscriber.
const DESCRIPTORS_ASIDE: u64 = 128;

/// Ports that are tried: below the range that clients get theirs from.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// A server that is not here, and what brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The file that was not found.
    pub what: &'static str,
    /// A Debian package, or another place.
    pub comes_from: &'static str,
}

/// What a server's own programme is.
#[derive(Clone, Debug)]
pub enum Found {
    /// This executable again.
    Own,
    /// Somebody else's, with a module where it needs one.
    Program(PathBuf, Option<PathBuf>),
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let aside = ASIDE.iter().map(PathBuf::from);
    std::env::split_paths(&path).chain(aside).map(|dir| dir.join(name)).find(|file| file.is_file())
}

impl Server {
    /// All of them, in the order of a round.
    pub const ALL: [Server; 10] = [
        Server::FloorSend,
        Server::FloorUring,
        Server::MillraceTcp,
        Server::MillraceWs,
        Server::Redis,
        Server::Nchan,
        Server::Nats,
        Server::MosquittoQos0,
        Server::MosquittoQos1,
        Server::Centrifugo,
    ];

    /// As flags and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Server::FloorSend => "floor-send",
            Server::FloorUring => "floor-uring",
            Server::MillraceTcp => "millrace-tcp",
            Server::MillraceWs => "millrace-ws",
            Server::Redis => "redis",
            Server::Nchan => "nchan",
            Server::Nats => "nats",
            Server::MosquittoQos0 => "mosquitto-qos0",
            Server::MosquittoQos1 => "mosquitto-qos1",
            Server::Centrifugo => "centrifugo",
        }
    }

    /// As tables name it.
    pub fn title(self) -> &'static str {
        match self {
            Server::FloorSend => "floor: send(2)",
            Server::FloorUring => "floor: io_uring",
            Server::MillraceTcp => "millrace, TCP",
            Server::MillraceWs => "millrace, WebSocket",
            Server::Redis => "Redis pub/sub",
            Server::Nchan => "nginx + nchan, WebSocket",
            Server::Nats => "nats-server",
            Server::MosquittoQos0 => "mosquitto, QoS 0",
            Server::MosquittoQos1 => "mosquitto, QoS 1",
            Server::Centrifugo => "Centrifugo, WebSocket",
        }
    }

    /// What is to be known when its figures are read.
    pub fn note(self) -> &'static str {
        match self {
            Server::FloorSend | Server::FloorUring => {
                "no sessions, topics or publisher: it sends by its own clock"
            }
            Server::MillraceTcp | Server::MillraceWs => {
                "every client logged in with a signed token; latency includes the message's fsync before its fan-out"
            }
            Server::Redis => "no persistence",
            Server::Nchan => "one worker per core; published by HTTP POST; newest 10 messages kept in memory",
            Server::Nats => "core NATS: no persistence",
            Server::MosquittoQos0 => "no persistence, unbounded queues",
            Server::MosquittoQos1 => {
                "each delivery acknowledged by its client; no persistence, unbounded queues and inflight window"
            }
            Server::Centrifugo => "protobuf protocol, memory engine, anonymous clients",
        }
    }

    /// Whether it is ours: a loss there fails the run.
    pub fn is_own(self) -> bool {
        self.is_floor() || matches!(self, Server::MillraceTcp | Server::MillraceWs)
    }

    /// Whether it sends by itself.
    pub fn is_floor(self) -> bool {
        matches!(self, Server::FloorSend | Server::FloorUring)
    }

    /// Looks for it.
    pub fn find(self) -> Result<Found, Missing> {
        let program =
            |what: &'static str, comes_from: &'static str| on_path(what).ok_or(Missing { what, comes_from });
        let alone = |path: PathBuf| Found::Program(path, None);
        match self {
            Server::FloorSend | Server::FloorUring | Server::MillraceTcp | Server::MillraceWs => {
                Ok(Found::Own)
            }
            Server::Redis => program("redis-server", "Debian package redis-server").map(alone),
            Server::Nats => program("nats-server", "Debian package nats-server").map(alone),
            Server::MosquittoQos0 | Server::MosquittoQos1 => {
                program("mosquitto", "Debian package mosquitto").map(alone)
            }
            Server::Centrifugo => {
                program("centrifugo", "https://github.com/centrifugal/centrifugo (no Debian package)")
                    .map(alone)
            }
            Server::Nchan => {
                let comes_from = "Debian package libnginx-mod-nchan (with nginx)";
                let nginx = program("nginx", comes_from)?;
                let module = NCHAN_MODULES.iter().map(Path::new).find(|path| path.is_file());
                let module = module.ok_or(Missing { what: "ngx_nchan_module.so", comes_from })?;
                Ok(Found::Program(nginx, Some(module.to_owned())))
            }
        }
    }

    /// What it says of its own version; `None` where it says nothing.
    pub fn version(self, found: &Found) -> Option<String> {
        let Found::Program(program, _) = found else { return None };
        let flag = match self {
            Server::Nchan => "-v",
            Server::MosquittoQos0 | Server::MosquittoQos1 => "-h",
            Server::Centrifugo => "version",
            _ => "--version",
        };
        let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let is_version = |word: &&str| {
            word.chars().any(|c| c.is_ascii_digit()) && word.contains('.') && !word.contains("http")
        };
        let word = text.lines().next()?.split_whitespace().find(is_version)?;
        let word = word.trim_start_matches("v=").trim_start_matches("nginx/").trim_matches([',', 'v']);
        // What Go programs say that were built without a version.
        (word != "0.0.0").then(|| word.to_owned())
    }
}

/// A server that runs.
pub struct Running {
    server: Server,
    child: Child,
    /// Where clients go.
    pub target: SocketAddr,
    /// What its clients share.
    clients: Clients,
}

/// What a server's clients share.
enum Clients {
    Anonymous,
    /// Tokens by number; the publisher's is the last.
    LoggedIn(Vec<Box<str>>, Arc<Room>),
}

impl Running {
    /// Starts it for so many subscribers, and waits until it takes connections.
    pub fn start(server: Server, found: &Found, settings: &Settings) -> Result<Self, RunError> {
        let subscribers = settings.connections;
        if !matches!(server, Server::FloorUring | Server::MillraceTcp | Server::MillraceWs) {
            let (needed, limit) = (u64::from(subscribers) + DESCRIPTORS_ASIDE, rlimit::nofile()?.hard);
            if needed > limit {
                let text = format!("it needs {needed} descriptors, and the limit is {limit} (ulimit -n)");
                return Err(RunError::Stuck(text));
            }
        }
        let (child, clients) = match (server, found) {
            (Server::FloorSend, _) => (floor::start(&floor::Plan::of(settings), true)?, Clients::Anonymous),
            (Server::FloorUring, _) => (floor::start(&floor::Plan::of(settings), false)?, Clients::Anonymous),
            (_, Found::Own) => {
                let run = Rng::from_system().bits();
                // One more for the publisher, who is in the room too.
                let world = World::new(run as u32, subscribers + 1, true, &[], 0);
                let (signer, jwks) = Signer::generate()?;
                let tokens = signer.sign_all(&world, |_| {})?;
                let room = Room {
                    short_name: world.short_name(0).to_owned(),
                    name: world.name(0).unwrap_or_default().to_owned(),
                    stream: run,
                };
                let (child, _) = rig::start_gateway(settings, &jwks, &Scratch::new()?, false)?;
                (child, Clients::LoggedIn(tokens, Arc::new(room)))
            }
            (_, Found::Program(program, module)) => {
                let scratch = Scratch::new()?;
                let address = free_address()?;
                let line = command(server, program, module.as_deref(), scratch.path(), address, settings)?;
                let flag = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
                let mut args = vec![
                    OsString::from("warden"),
                    flag("cpus", &floor::list(&settings.cores.server)),
                    flag("scratch", &scratch.path().display().to_string()),
                    flag("address", &address.to_string()),
                    OsString::from("--"),
                ];
                args.extend(line);
                (Child::start(server.title(), args, scratch)?, Clients::Anonymous)
            }
        };
        let target = child.address("tcp").ok_or(RunError::NoAddress(server.title()))?;
        Ok(Running { server, child, target, clients })
    }

    /// The protocol of one connection; subscribers are numbered from 0.
    pub fn codec(&self, role: Role, number: u32, nonce: [u8; 16]) -> Box<dyn Codec> {
        match (self.server, &self.clients) {
            (Server::MillraceTcp | Server::MillraceWs, Clients::LoggedIn(tokens, room)) => {
                let transport = match self.server {
                    Server::MillraceWs => Transport::Ws,
                    _ => Transport::Tcp,
                };
                let token = match role {
                    Role::Subscriber => tokens.get(number as usize),
                    Role::Publisher => tokens.last(),
                };
                let token = token.map_or("", |token| token);
                Box::new(Millrace::new(role, transport, Arc::clone(room), token, nonce))
            }
            (Server::Redis, _) => Box::new(Resp::new(role)),
            (Server::Nats, _) => Box::new(Nats::new(role)),
            (Server::MosquittoQos0, _) => Box::new(Mqtt::new(role, Qos::AtMostOnce)),
            (Server::MosquittoQos1, _) => Box::new(Mqtt::new(role, Qos::AtLeastOnce)),
            (Server::Centrifugo, _) => Box::new(Centrifugo::new(role, nonce)),
            (Server::Nchan, _) => match role {
                Role::Subscriber => Box::new(NchanSubscriber::new(nonce)),
                Role::Publisher => Box::new(NchanPublisher::default()),
            },
            (_, _) => Box::new(Floor::new()),
        }
    }

    /// Has a floor send `rounds` messages of `run`, `gap_us` apart, from `start_us` on.
    pub fn tell(&mut self, run: u32, rounds: u32, gap_us: u64, start_us: u64) -> io::Result<()> {
        self.child.tell(&format!("{run} {rounds} {gap_us} {start_us}"))
    }

    /// Whether it still runs.
    pub fn check(&mut self) -> Result<(), RunError> {
        Ok(self.child.check()?)
    }

    /// The end of its log, each line indented.
    pub fn log_tail(&self) -> String {
        self.child.log_tail()
    }

    /// Its processes.
    fn processes(&self) -> Vec<u32> {
        match self.server.is_own() {
            true => vec![self.child.pid()],
            // The warden is ours.
            false => measure::descendants(self.child.pid()),
        }
    }

    /// CPU that all its processes have used, in microseconds.
    pub fn cpu_us(&self) -> u64 {
        self.processes().into_iter().filter_map(|pid| measure::cpu_us(pid).ok()).sum()
    }

    /// Memory of all its processes in bytes (PSS).
    pub fn bytes(&self) -> io::Result<u64> {
        self.processes().into_iter().map(measure::pss_bytes).sum()
    }
}

/// A port that nobody has just now.
fn free_address() -> io::Result<SocketAddr> {
    let mut rng = Rng::from_system();
    let mut tries = 100;
    loop {
        let port = (PORTS.start + rng.below(PORTS.end - PORTS.start)) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => tries -= 1,
        }
    }
}

/// Writes a server's configuration and gives its command line.
fn command(
    server: Server,
    program: &Path,
    module: Option<&Path>,
    scratch: &Path,
    address: SocketAddr,
    settings: &Settings,
) -> io::Result<Vec<OsString>> {
    let port = address.port().to_string();
    let clients = u64::from(settings.connections) + DESCRIPTORS_ASIDE;
    let config = |name: &str, text: String| -> io::Result<OsString> {
        let path = scratch.join(name);
        std::fs::write(&path, text)?;
        Ok(path.into_os_string())
    };
    let dir = scratch.display();
    let mut line = vec![program.as_os_str().to_owned()];
    match server {
        Server::Redis => {
            let text = format!(
                "bind 127.0.0.1\nport {port}\nsave \"\"\nappendonly no\ndaemonize no\ndir \"{dir}\"\n\
                 protected-mode no\nmaxclients {clients}\nlogfile \"\"\nloglevel warning\n"
            );
            line.push(config("redis.conf", text)?);
        }
        Server::Nats => {
            let text = format!("host: \"127.0.0.1\"\nport: {port}\nmax_connections: {clients}\n");
            line.extend([OsString::from("-c"), config("nats.conf", text)?]);
        }
        Server::MosquittoQos0 | Server::MosquittoQos1 => {
            let text = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_connections -1\n\
                 max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n\
                 log_dest stderr\nlog_type error\nlog_type warning\n"
            );
            line.extend([OsString::from("-c"), config("mosquitto.conf", text)?]);
        }
        Server::Nchan => {
            let workers = settings.cores.server.len().max(1);
            let module = module.unwrap_or(Path::new("")).display();
            // nginx closes idle connections when a sixteenth of these is free.
            let connections = clients + clients / 8;
            let text = format!(
                "load_module \"{module}\";\ndaemon off;\nworker_processes {workers};\npid \"{dir}/nginx.pid\";\n\
                 error_log stderr warn;\n\
                 events {{ worker_connections {connections}; }}\n\
                 http {{\n  access_log off;\n  client_body_buffer_size 128k;\n  keepalive_timeout 1h;\n  \
                 keepalive_requests 1000000;\n  client_body_temp_path \"{dir}/body\";\n  \
                 proxy_temp_path \"{dir}/proxy\";\n  fastcgi_temp_path \"{dir}/fastcgi\";\n  \
                 uwsgi_temp_path \"{dir}/uwsgi\";\n  scgi_temp_path \"{dir}/scgi\";\n  server {{\n    \
                 listen 127.0.0.1:{port} backlog=4096;\n    \
                 location = /sub {{ nchan_subscriber websocket; nchan_channel_id fan; \
                 nchan_subscriber_first_message newest; }}\n    \
                 location = /pub {{ nchan_publisher http; nchan_channel_id fan; }}\n  }}\n}}\n"
            );
            let config = config("nginx.conf", text)?;
            // The log before the configuration is read goes to a system's file otherwise.
            line.extend([
                OsString::from("-e"),
                "stderr".into(),
                "-p".into(),
                scratch.into(),
                "-c".into(),
                config,
            ]);
        }
        Server::Centrifugo => {
            let config = config("centrifugo.json", centrifugo(program, address.port()))?;
            line.push(OsString::from("--config"));
            line.push(config);
        }
        Server::FloorSend | Server::FloorUring | Server::MillraceTcp | Server::MillraceWs => {}
    }
    Ok(line)
}

/// Whether Centrifugo's settings are in groups, as they are since version 6. One that doesn't know its version was
/// built by the Go tools, which write the module's path into it.
fn has_grouped_settings(program: &Path) -> bool {
    let version = Server::Centrifugo.version(&Found::Program(program.to_owned(), None));
    if let Some(major) = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok()) {
        return major >= 6;
    }
    const OLD: &[u8] = b"github.com/centrifugal/centrifugo/v5/";
    !std::fs::read(program).is_ok_and(|bytes| bytes.windows(OLD.len()).any(|window| window == OLD))
}

fn centrifugo(program: &Path, port: u16) -> String {
    let config = if has_grouped_settings(program) {
        serde_json::json!({
            "http_server": { "address": "127.0.0.1", "port": port.to_string() },
            "client": { "insecure": true },
            "channel": { "without_namespace": {
                "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
                "allow_publish_for_client": true, "allow_publish_for_anonymous": true,
            }},
            "log": { "level": "warn" },
        })
    } else {
        serde_json::json!({
            "address": "127.0.0.1", "port": port.to_string(), "client_insecure": true,
            "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
            "allow_publish_for_client": true, "allow_publish_for_anonymous": true,
            "log_level": "warn",
        })
    };
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn names_are_those_of_the_flags() {
        for server in Server::ALL {
            let value = server.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), server.name());
        }
        assert_eq!(Server::ALL.len(), Server::value_variants().len());
    }

    #[test]
    fn ports_are_free_and_below_those_of_clients() {
        let address = free_address().unwrap();
        assert!(address.ip().is_loopback() && PORTS.contains(&address.port().into()));
        assert!(TcpListener::bind(address).is_ok());
    }
}
