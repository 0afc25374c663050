//! Steps that look at the cloud from inside its guests.

use std::future::Future;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use osclient::journal::Thing;
use serde_json::Value;

use crate::board::{Board, Item, Unfit};
use crate::engine::{About, Done, Failure, Pass, Worked};
use crate::hands::{Output, Target};
use crate::record::{Class, Measure, Place};
use crate::scenario::{Check, Step};

/// Where the agent and the mark of the user data lie in a guest.
const AGENT: &str = "/tmp/allod-probe-agent";
const MARK: &str = "/tmp/allod-probe-user-data";
/// Port of the agent.
const PORT: u16 = 5201;
/// Packets to each peer.
const PACKETS: u32 = 10;
/// How long data is sent to measure the throughput.
const SEND_SECONDS: u32 = 3;

/// What a guest is told to do: to show that it was told.
pub(crate) fn user_data(name: &str) -> String {
    BASE64_STANDARD.encode(format!("#!/bin/sh\necho {name} > {MARK}\n"))
}

/// The server that an item is, or belongs to.
fn server_of(pass: &Pass<'_>, board: &Board, item: &Item) -> Option<(String, Item)> {
    let steps = pass.engine.scenario.steps.iter().filter(|s| s.make == Some(Thing::Server));
    let mut found = steps.filter_map(|s| {
        let index = item.parents.get(&s.id)?;
        Some((s.id.clone(), board.of(&s.id).iter().find(|i| i.index == *index)?.clone()))
    });
    found.next_back()
}

/// Whom images of a kind let in.
fn user(pass: &Pass<'_>, board: &Board) -> String {
    let set = pass.engine.scenario.set.get("user").and_then(Value::as_str).filter(|u| !u.is_empty());
    let image = board.of("image").first();
    let told = image.and_then(|i| i.value.get("image_original_user")?.as_str());
    let distro = image.and_then(|i| i.value.get("os_distro")?.as_str()).unwrap_or("debian");
    set.or(told).unwrap_or(distro).to_owned()
}

/// The way to a server: its own floating IP, or through a server that has one.
fn target(pass: &Pass<'_>, board: &Board, step: &str, server: &Item) -> Result<Target, Unfit> {
    let scenario = &pass.engine.scenario;
    let address = |ip: &Item| ip.value.get("floating_ip_address").and_then(Value::as_str).map(str::to_owned);
    let open: Vec<(&Item, String)> = board
        .all(scenario, Thing::FloatingIp)
        .filter(|(_, ip)| ip.failed.is_none())
        .filter_map(|(_, ip)| Some((ip, address(ip)?)))
        .collect();
    let own = open.iter().find(|(ip, _)| ip.parents.get(step) == Some(&server.index));
    let (user, key) = (user(pass, board), pass.key_file.clone());
    if let Some((_, address)) = own {
        return Ok(Target { user, address: address.clone(), via: None, key });
    }
    let Some((_, via)) = open.get(server.index % open.len().max(1)) else {
        let failed = board.all(scenario, Thing::FloatingIp).find_map(|(_, ip)| ip.failed);
        return Err(failed.map_or(Unfit::Missing("no guest has a floating IP".into()), Unfit::Because));
    };
    let address = server.address().ok_or_else(|| Unfit::Missing("the guest has no address".into()))?;
    Ok(Target { user, address, via: Some(via.clone()), key })
}

/// A check from inside a guest.
pub(crate) async fn check(pass: &Pass<'_>, step: &Step, check: Check, mut item: Item) -> Worked {
    let op = match check {
        Check::Reach => "guest.reach",
        Check::Login => "guest.login",
        Check::Metadata => "guest.metadata",
        Check::Outside => "guest.outside",
        Check::Matrix => "pair.reach",
        Check::Throughput => "pair.throughput",
        Check::Bench => "guest.bench",
        _ => "balancer.contract",
    };
    let mut about = About { op: op.into(), service: "guest".into(), ..About::default() };
    let (server, way) = {
        let board = pass.board.read();
        let server = server_of(pass, &board, &item);
        let way = server.as_ref().map(|(step, server)| target(pass, &board, step, server));
        (server, way)
    };
    let cause = item.failed.or(server.as_ref().and_then(|(_, s)| s.failed));
    let way = match (cause, way) {
        (Some(cause), _) => Err(Unfit::Because(cause)),
        (None, Some(way)) => way,
        (None, None) => Err(Unfit::Missing("the step is for no server".into())),
    };
    let (Some((server_step, server)), Ok(way)) = (server, &way) else {
        let why = way.err().unwrap_or(Unfit::Missing("no server".into()));
        let seq = pass.skip(step, &about, &why);
        return Worked { item, failed: Some(seq) };
    };
    about.name = Some(server.name.clone());
    about.id.clone_from(&server.id);
    about.place = server.place.clone();
    item.place = server.place.clone();
    let guest = Guest { pass, step, about, made: server_step, server, way: way.clone() };
    let failed = match check {
        Check::Reach | Check::Login => guest.login().await,
        Check::Metadata => guest.metadata().await,
        Check::Outside => guest.outside().await,
        Check::Matrix => guest.matrix().await,
        Check::Throughput => guest.throughput().await,
        Check::Bench => guest.bench().await,
        _ => guest.balancer().await,
    };
    Worked { item, failed }
}

/// A guest that a step looks at. What a look gives is the record that makes the step's item useless, if it does.
struct Guest<'a, 'e> {
    pass: &'a Pass<'e>,
    step: &'a Step,
    /// What its records are about.
    about: About,
    /// The step that made it.
    made: String,
    server: Item,
    way: Target,
}

impl Guest<'_, '_> {
    async fn said(&self, command: &str, limit: Duration) -> Result<Output, Failure> {
        self.pass.engine.hands.run(&self.way, command, None, limit).await
    }

    /// One record of a look at it.
    async fn look<F, R>(&self, about: About, limit: Duration, deed: F) -> Option<u64>
    where
        F: Fn() -> R,
        R: Future<Output = Result<Done, Failure>>,
    {
        let (result, seq) = self.pass.operate(self.step, about, limit, false, |_| deed()).await;
        result.err().map(|_| seq)
    }

    fn skip(&self, why: &str) -> Option<u64> {
        Some(self.pass.skip(self.step, &self.about, &Unfit::Missing(why.into())))
    }

    /// Notes something of it for later steps.
    fn remember(&self, change: impl FnOnce(&mut Item)) {
        if let Some(item) = self.pass.board.write().item_mut(&self.made, self.server.index) {
            change(item);
        }
    }

    /// Logs in, as often as it takes; then the agent is put in. A guest nobody can log in to is of no use to later checks.
    async fn login(&self) -> Option<u64> {
        let pass = self.pass;
        let limit = pass.limit(self.step, pass.engine.scenario.change_limit);
        let failed =
            self.look(self.about.clone(), limit + Duration::from_secs(5), || self.let_in(limit)).await;
        if failed.is_some() {
            self.remember(|item| item.failed = item.failed.or(failed));
            return failed;
        }
        let agent = pass.engine.agent.as_deref()?;
        let install = format!(
            "cat > {AGENT}.new && chmod 700 {AGENT}.new && mv {AGENT}.new {AGENT} && {AGENT} version \
                               && (setsid {AGENT} serve {PORT} >/dev/null 2>&1 </dev/null & )"
        );
        let there = pass.engine.hands.run(&self.way, &install, Some(agent), limit).await;
        let there = there.is_ok_and(|o| o.status == 0);
        self.remember(|item| item.agent = there);
        None
    }

    async fn let_in(&self, limit: Duration) -> Result<Done, Failure> {
        let (begin, pause) = (Instant::now(), self.pass.engine.pause);
        let mut looks = 0;
        loop {
            looks += 1;
            let left = limit.saturating_sub(begin.elapsed());
            match self.said("true", left.min(Duration::from_secs(20))).await {
                Ok(output) if output.status == 0 => {
                    let since = self.server.begun.map(|b| Measure {
                        name: "since-create".into(),
                        value: b.elapsed().as_secs_f64(),
                        unit: "s".into(),
                    });
                    return Ok(Done { looks, measures: since.into_iter().collect(), ..Done::default() });
                }
                Err(failure) if failure.class == Class::Tool => return Err(failure),
                Err(failure) if begin.elapsed() + pause >= limit => return Err(failure),
                _ => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn metadata(&self) -> Option<u64> {
        let limit = self.pass.limit(self.step, 60.0);
        self.look(self.about.clone(), limit, || self.has_its_own(limit)).await
    }

    async fn has_its_own(&self, limit: Duration) -> Result<Done, Failure> {
        let url = "http://169.254.169.254/openstack/latest/meta_data.json";
        let command = format!("cat {MARK}; echo ==; {}", fetch(url, 10));
        let begin = Instant::now();
        loop {
            let output = self.said(&command, limit).await?;
            let (mark, metadata) = output.stdout.split_once("==").unwrap_or((output.stdout.as_str(), ""));
            let metadata: Value = serde_json::from_str(metadata.trim()).unwrap_or_default();
            let uuid = metadata.get("uuid").and_then(Value::as_str);
            let wrong = match (mark.trim() == self.server.name, uuid) {
                (true, Some(uuid)) if Some(uuid) == self.server.id.as_deref() => return Ok(Done::default()),
                (false, Some(_)) => "its user data did not run".to_owned(),
                (_, None) if no_tool(output.status) => {
                    return Err(Failure::new(Class::Tool, "the guest has no wget and no curl that runs"));
                }
                (_, None) => "the metadata service does not answer".to_owned(),
                (_, Some(uuid)) => format!("it got the metadata of {uuid}"),
            };
            if begin.elapsed() + Duration::from_secs(2) > limit {
                return Err(Failure::new(Class::DataPlane, wrong));
            }
            // User data runs after SSH is there.
            tokio::time::sleep(self.pass.engine.pause).await;
        }
    }

    async fn outside(&self) -> Option<u64> {
        let limit = self.pass.limit(self.step, 30.0);
        let place = self.pass.engine.scenario.set.get("outside").and_then(Value::as_str).unwrap_or_default();
        // What is pinged stands in a shell command.
        let plain = place.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c));
        let command = &format!("ping -c 3 -W 3 {}", if plain { place } else { "invalid" });
        self.look(self.about.clone(), limit, || async move {
            let output = self.said(command, limit).await?;
            let received =
                output.stdout.split(" packets received").next().and_then(|t| t.rsplit([' ', ',']).next());
            let received = received.or_else(|| output.stdout.split(" received").next()?.rsplit(' ').next());
            let received: f64 = received.and_then(|r| r.trim().parse().ok()).unwrap_or(0.0);
            let measures =
                vec![Measure { name: "loss".into(), value: 1.0 - received.min(3.0) / 3.0, unit: "1".into() }];
            if output.status != 0 {
                return Err(Failure::new(Class::DataPlane, format!("{place} does not answer a ping")));
            }
            Ok(Done { measures, ..Done::default() })
        })
        .await
    }

    /// Other guests of the same step that are of use, with their addresses.
    fn peers(&self) -> Vec<(Item, String)> {
        let board = self.pass.board.read();
        let others =
            board.of(&self.made).iter().filter(|i| i.index != self.server.index && i.failed.is_none());
        others.filter_map(|i| Some((i.clone(), i.address()?))).collect()
    }

    /// Whether one of them has the agent.
    fn has_agent(&self, index: usize) -> bool {
        self.pass.board.read().of(&self.made).iter().any(|i| i.index == index && i.agent)
    }

    async fn matrix(&self) -> Option<u64> {
        let peers = self.peers();
        if peers.is_empty() {
            return self.skip("there is no other guest");
        }
        let limit = self.pass.limit(self.step, 120.0);
        let addresses: Vec<&str> = peers.iter().map(|(_, a)| a.as_str()).collect();
        let begin = Instant::now();
        let rows = if self.has_agent(self.server.index) {
            let command = format!("{AGENT} matrix {PORT} {PACKETS} {}", addresses.join(" "));
            self.said(&command, limit).await.map(|o| rows(&o.stdout))
        } else {
            self.pinged(&addresses, limit).await
        };
        let mut worst = None;
        for (peer, address) in &peers {
            let about = About {
                name: Some(format!("{} > {}", self.server.name, peer.name)),
                place: Place { peer: peer.place.host.clone(), ..self.about.place.clone() },
                ..self.about.clone()
            };
            let result = match &rows {
                Err(failure) => Err((failure.clone(), Vec::new())),
                Ok(rows) => {
                    match rows.iter().find(|r| r.get("peer").and_then(Value::as_str) == Some(address)) {
                        None => Err((Failure::new(Class::Tool, "the agent said nothing of it"), Vec::new())),
                        Some(row) => judged(row),
                    }
                }
            };
            let bad = result.is_err();
            let seq = self.pass.note(self.step, about, crate::engine::micros(begin), result);
            worst = worst.or(Some(seq).filter(|_| bad));
            if rows.as_ref().is_err() {
                // One reason, one record.
                break;
            }
        }
        worst
    }

    /// Without the agent: pings, one after the other.
    async fn pinged(&self, addresses: &[&str], limit: Duration) -> Result<Vec<Value>, Failure> {
        let command = format!(
            "for a in {}; do if ping -c 1 -W 1 $a >/dev/null 2>&1; then echo $a 1; elif sleep 1; ping -c 1 -W 3 $a >/dev/null 2>&1; \
             then echo $a 2; else echo $a 0; fi; done",
            addresses.join(" ")
        );
        let output = self.said(&command, limit).await?;
        let row = |line: &str| {
            let (peer, tries) = line.split_once(' ')?;
            let (sent, received) = match tries.trim() {
                "1" => (1, 1),
                "2" => (2, 1),
                _ => (2, 0),
            };
            Some(serde_json::json!({"peer": peer, "icmp": {"sent": sent, "received": received}}))
        };
        Ok(output.stdout.lines().filter_map(row).collect())
    }

    async fn throughput(&self) -> Option<u64> {
        let peers = self.peers();
        let next = peers.iter().find(|(p, _)| p.index > self.server.index).or(peers.first());
        let both = next.filter(|(p, _)| self.has_agent(self.server.index) && self.has_agent(p.index));
        let Some((peer, address)) = both else { return self.skip("no two guests have the agent") };
        let mut about = self.about.clone();
        about.name = Some(format!("{} > {}", self.server.name, peer.name));
        about.place.peer.clone_from(&peer.place.host);
        let limit = self.pass.limit(self.step, 60.0);
        let command = &format!("{AGENT} throughput {PORT} {SEND_SECONDS} {address}");
        self.look(about, limit, || async move {
            let output = self.said(command, limit).await?;
            let row = rows(&output.stdout).into_iter().next().unwrap_or_default();
            let number = |name: &str| row.get(name).and_then(Value::as_f64);
            let (Some(sent), Some(received)) = (number("sent_mbit_s"), number("received_mbit_s")) else {
                let why = row.get("error").and_then(Value::as_str).unwrap_or(output.stderr.trim());
                return Err(Failure::new(Class::DataPlane, format!("nothing got through: {why}")));
            };
            let rate = |name: &str, value| Measure { name: name.into(), value, unit: "Mbit/s".into() };
            Ok(Done { measures: vec![rate("sender", sent), rate("receiver", received)], ..Done::default() })
        })
        .await
    }

    async fn bench(&self) -> Option<u64> {
        let limit = self.pass.limit(self.step, 120.0);
        let command = &format!("d=/var/tmp; [ -w $d ] || d=/tmp; {AGENT} bench $d");
        self.look(self.about.clone(), limit, || async move {
            let output = self.said(command, limit).await?;
            let row = rows(&output.stdout).into_iter().next();
            let Some(row) = row.filter(|_| output.status == 0) else {
                let why = output.stderr.lines().last().unwrap_or("it said nothing").to_owned();
                return Err(Failure::new(Class::Tool, format!("the agent did not run: {why}")));
            };
            let measure = |(name, unit): (&str, &str)| {
                let value = row.get(name.replace('-', "_")).and_then(Value::as_f64)?;
                Some(Measure { name: name.into(), value, unit: unit.into() })
            };
            let measures = [
                ("cpu-seconds", "s"),
                ("disk-write", "MiB/s"),
                ("disk-read", "MiB/s"),
                ("disk-sync", "ms"),
                ("disk-slow", "%"),
            ];
            Ok(Done { measures: measures.into_iter().filter_map(measure).collect(), ..Done::default() })
        })
        .await
    }

    /// Every member answers in its turn, and nobody else.
    async fn balancer(&self) -> Option<u64> {
        let limit = self.pass.limit(self.step, 60.0);
        let (found, members) = {
            let board = self.pass.board.read();
            let scenario = &self.pass.engine.scenario;
            let found = board.all(scenario, Thing::LoadBalancer).next().map(|(_, lb)| lb.clone());
            let guests = board.all(scenario, Thing::Server).filter(|(step, s)| s.agent && *step != self.made);
            (found, guests.map(|(_, s)| s.name.clone()).collect::<Vec<_>>())
        };
        if let Some(cause) = found.as_ref().and_then(|lb| lb.failed) {
            return Some(self.pass.skip(self.step, &self.about, &Unfit::Because(cause)));
        }
        let vip = found.as_ref().and_then(|lb| lb.value.get("vip_address")?.as_str());
        let Some(vip) = vip else { return self.skip("there is no load balancer") };
        let requests = 2 * members.len().max(1);
        let request = fetch(&format!("http://{vip}/hostname"), 4);
        let command = &format!("for i in $(seq {requests}); do {request}; echo; done");
        let members = &members;
        self.look(self.about.clone(), limit, || async move {
            let output = self.said(command, limit).await?;
            let answers: Vec<&str> = output.stdout.lines().filter(|l| !l.trim().is_empty()).collect();
            let strangers = answers.iter().filter(|a| !members.iter().any(|m| m == *a)).count();
            let failed = requests - answers.len().min(requests);
            if failed > 0 || strangers > 0 {
                let message =
                    format!("{failed} of {requests} requests failed, {strangers} were answered by no member");
                return Err(Failure::new(Class::DataPlane, message));
            }
            Ok(Done::default())
        })
        .await
    }
}

/// A command that gets a URL. Not by `wget -T`: with it, the busybox of Debian 12 dies of a segmentation fault.
fn fetch(url: &str, seconds: u32) -> String {
    format!(
        "if command -v wget >/dev/null; then timeout {seconds} wget -qO- {url}; else timeout {seconds} curl -sf {url}; fi"
    )
}

/// Whether a command did not end well because it is not there, cannot be run, or died of a signal that nobody sent.
fn no_tool(status: i32) -> bool {
    matches!(status, 126 | 127 | 132 | 134 | 135 | 139)
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// What a row of the agent says: every protocol that was tried must get through.
fn judged(row: &Value) -> Result<Vec<Measure>, (Failure, Vec<Measure>)> {
    let mut measures = Vec::new();
    let mut dead = Vec::new();
    for protocol in ["icmp", "udp", "tcp"] {
        let Some(part) = row.get(protocol).filter(|p| p.get("skipped").is_none()) else { continue };
        let number = |name: &str| part.get(name).and_then(Value::as_f64);
        let (sent, received) = (number("sent").unwrap_or(0.0), number("received").unwrap_or(0.0));
        if sent > 0.0 {
            let loss = 1.0 - received / sent;
            measures.push(Measure { name: format!("{protocol}-loss"), value: loss, unit: "1".into() });
        }
        if let Some(us) = number("median_us") {
            measures.push(Measure { name: format!("{protocol}-rtt"), value: us / 1000.0, unit: "ms".into() });
        }
        if received == 0.0 {
            dead.push(protocol);
        }
    }
    if dead.is_empty() {
        return Ok(measures);
    }
    Err((Failure::new(Class::DataPlane, format!("no {} gets through", dead.join(", no "))), measures))
}
