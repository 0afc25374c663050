//! Steps that look at the cloud from inside its guests.

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

fn fixed_address(server: &Item) -> Option<String> {
    let addresses = server.value.get("addresses")?.as_object()?;
    let all = addresses.values().filter_map(Value::as_array).flatten();
    let fixed = all.filter(|a| a.get("OS-EXT-IPS:type").and_then(Value::as_str) != Some("floating"));
    fixed.filter_map(|a| a.get("addr")?.as_str()).find(|a| a.contains('.')).map(str::to_owned)
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
    let address = fixed_address(server).ok_or_else(|| Unfit::Missing("the guest has no address".into()))?;
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
    let failed = match check {
        Check::Reach | Check::Login => login(pass, step, about, &server_step, &server, way).await,
        Check::Metadata => metadata(pass, step, about, &server, way).await,
        Check::Outside => outside(pass, step, about, way).await,
        Check::Matrix => matrix(pass, step, about, &server_step, &server, way).await,
        Check::Throughput => throughput(pass, step, about, &server_step, &server, way).await,
        Check::Bench => bench(pass, step, about, way).await,
        _ => balancer(pass, step, about, &server_step, way).await,
    };
    Worked { item, failed }
}

async fn said(pass: &Pass<'_>, way: &Target, command: &str, limit: Duration) -> Result<Output, Failure> {
    pass.engine.hands.run(way, command, None, limit).await
}

/// Logs in, as often as it takes; then the agent is put in. A guest nobody can log in to is of no use to later checks.
async fn login(
    pass: &Pass<'_>,
    step: &Step,
    about: About,
    server_step: &str,
    server: &Item,
    way: &Target,
) -> Option<u64> {
    let limit = pass.limit(step, pass.engine.scenario.change_limit);
    let begun = server.begun;
    let (result, seq) = pass
        .operate(step, about, limit + Duration::from_secs(5), false, |_| async move {
            let begin = Instant::now();
            let mut looks = 0;
            loop {
                looks += 1;
                let left = limit.saturating_sub(begin.elapsed());
                match said(pass, way, "true", left.min(Duration::from_secs(20))).await {
                    Ok(output) if output.status == 0 => {
                        let since = begun.map(|b| Measure {
                            name: "since-create".into(),
                            value: b.elapsed().as_secs_f64(),
                            unit: "s".into(),
                        });
                        return Ok(Done { looks, measures: since.into_iter().collect(), ..Done::default() });
                    }
                    Err(failure) if failure.class == Class::Tool => return Err(failure),
                    Err(failure) if begin.elapsed() + pass.engine.pause >= limit => return Err(failure),
                    _ => tokio::time::sleep(pass.engine.pause).await,
                }
            }
        })
        .await;
    if result.is_err() {
        if let Some(item) = pass.board.write().item_mut(server_step, server.index) {
            item.failed = item.failed.or(Some(seq));
        }
        return Some(seq);
    }
    let agent = pass.engine.agent.as_deref()?;
    let install = format!(
        "cat > {AGENT}.new && chmod 700 {AGENT}.new && mv {AGENT}.new {AGENT} && {AGENT} version \
                           && (setsid {AGENT} serve {PORT} >/dev/null 2>&1 </dev/null & )"
    );
    let there = pass.engine.hands.run(way, &install, Some(agent), limit).await;
    let there = there.is_ok_and(|o| o.status == 0);
    if let Some(item) = pass.board.write().item_mut(server_step, server.index) {
        item.agent = there;
    }
    None
}

async fn metadata(pass: &Pass<'_>, step: &Step, about: About, server: &Item, way: &Target) -> Option<u64> {
    let limit = pass.limit(step, 60.0);
    let url = "http://169.254.169.254/openstack/latest/meta_data.json";
    let command = format!("cat {MARK}; echo ==; wget -T 10 -qO- {url} || curl -sf -m 10 {url}");
    let command = command.as_str();
    let (result, seq) = pass
        .operate(step, about, limit, false, |_| async move {
            let begin = Instant::now();
            loop {
                let output = said(pass, way, command, limit).await?;
                let (mark, metadata) = output.stdout.split_once("==").unwrap_or((output.stdout.as_str(), ""));
                let metadata: Value = serde_json::from_str(metadata.trim()).unwrap_or_default();
                let uuid = metadata.get("uuid").and_then(Value::as_str);
                let wrong = match (mark.trim() == server.name, uuid) {
                    (true, Some(uuid)) if Some(uuid) == server.id.as_deref() => return Ok(Done::default()),
                    (false, Some(_)) => "its user data did not run".to_owned(),
                    (_, None) => "the metadata service does not answer".to_owned(),
                    (_, Some(uuid)) => format!("it got the metadata of {uuid}"),
                };
                if begin.elapsed() + Duration::from_secs(2) > limit {
                    return Err(Failure::new(Class::DataPlane, wrong));
                }
                // User data runs after SSH is there.
                tokio::time::sleep(pass.engine.pause).await;
            }
        })
        .await;
    result.err().map(|_| seq)
}

async fn outside(pass: &Pass<'_>, step: &Step, about: About, way: &Target) -> Option<u64> {
    let limit = pass.limit(step, 30.0);
    let place = pass.engine.scenario.set.get("outside").and_then(Value::as_str).unwrap_or_default();
    // What is pinged stands in a shell command.
    let plain = place.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c));
    let command = format!("ping -c 3 -W 3 {}", if plain { place } else { "invalid" });
    let command = command.as_str();
    let (result, seq) = pass
        .operate(step, about, limit, false, |_| async move {
            let output = said(pass, way, command, limit).await?;
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
        .await;
    result.err().map(|_| seq)
}

/// Other servers of the same step that are of use, with their addresses.
fn peers(pass: &Pass<'_>, step: &str, server: &Item) -> Vec<(Item, String)> {
    let board = pass.board.read();
    let others = board.of(step).iter().filter(|i| i.index != server.index && i.failed.is_none());
    others.filter_map(|i| Some((i.clone(), fixed_address(i)?))).collect()
}

fn has_agent(pass: &Pass<'_>, step: &str, index: usize) -> bool {
    pass.board.read().of(step).iter().any(|i| i.index == index && i.agent)
}

async fn matrix(
    pass: &Pass<'_>,
    step: &Step,
    about: About,
    server_step: &str,
    server: &Item,
    way: &Target,
) -> Option<u64> {
    let peers = peers(pass, server_step, server);
    if peers.is_empty() {
        return Some(pass.skip(step, &about, &Unfit::Missing("there is no other guest".into())));
    }
    let limit = pass.limit(step, 120.0);
    let addresses: Vec<&str> = peers.iter().map(|(_, a)| a.as_str()).collect();
    let begin = Instant::now();
    let rows = if has_agent(pass, server_step, server.index) {
        let command = format!("{AGENT} matrix {PORT} {PACKETS} {}", addresses.join(" "));
        said(pass, way, &command, limit).await.map(|o| rows(&o.stdout))
    } else {
        pinged(pass, way, &addresses, limit).await
    };
    let mut worst = None;
    for (peer, address) in &peers {
        let about = About {
            name: Some(format!("{} > {}", server.name, peer.name)),
            place: Place { peer: peer.place.host.clone(), ..about.place.clone() },
            ..about.clone()
        };
        let result = match &rows {
            Err(failure) => Err((failure.clone(), Vec::new())),
            Ok(rows) => match rows.iter().find(|r| r.get("peer").and_then(Value::as_str) == Some(address)) {
                None => Err((Failure::new(Class::Tool, "the agent said nothing of it"), Vec::new())),
                Some(row) => judged(row),
            },
        };
        let bad = result.is_err();
        let seq = pass.note(step, about, crate::engine::micros(begin), result);
        worst = worst.or(Some(seq).filter(|_| bad));
        if rows.as_ref().is_err() {
            // One reason, one record.
            break;
        }
    }
    worst
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// Without the agent: pings, one after the other.
async fn pinged(
    pass: &Pass<'_>,
    way: &Target,
    addresses: &[&str],
    limit: Duration,
) -> Result<Vec<Value>, Failure> {
    let command = format!(
        "for a in {}; do if ping -c 1 -W 1 $a >/dev/null 2>&1; then echo $a 1; elif sleep 1; ping -c 1 -W 3 $a >/dev/null 2>&1; \
         then echo $a 2; else echo $a 0; fi; done",
        addresses.join(" ")
    );
    let output = said(pass, way, &command, limit).await?;
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

async fn throughput(
    pass: &Pass<'_>,
    step: &Step,
    mut about: About,
    server_step: &str,
    server: &Item,
    way: &Target,
) -> Option<u64> {
    let peers = peers(pass, server_step, server);
    let next = peers.iter().find(|(p, _)| p.index > server.index).or(peers.first());
    let both = next
        .filter(|(p, _)| has_agent(pass, server_step, server.index) && has_agent(pass, server_step, p.index));
    let Some((peer, address)) = both else {
        return Some(pass.skip(step, &about, &Unfit::Missing("no two guests have the agent".into())));
    };
    about.name = Some(format!("{} > {}", server.name, peer.name));
    about.place.peer.clone_from(&peer.place.host);
    let limit = pass.limit(step, 60.0);
    let command = format!("{AGENT} throughput {PORT} {SEND_SECONDS} {address}");
    let command = command.as_str();
    let (result, seq) = pass
        .operate(step, about, limit, false, |_| async move {
            let output = said(pass, way, command, limit).await?;
            let row = rows(&output.stdout).into_iter().next().unwrap_or_default();
            let number = |name: &str| row.get(name).and_then(Value::as_f64);
            let (Some(sent), Some(received)) = (number("sent_mbit_s"), number("received_mbit_s")) else {
                let why = row.get("error").and_then(Value::as_str).unwrap_or(output.stderr.trim());
                return Err(Failure::new(Class::DataPlane, format!("nothing got through: {why}")));
            };
            let rate = |name: &str, value| Measure { name: name.into(), value, unit: "Mbit/s".into() };
            Ok(Done { measures: vec![rate("sender", sent), rate("receiver", received)], ..Done::default() })
        })
        .await;
    result.err().map(|_| seq)
}

async fn bench(pass: &Pass<'_>, step: &Step, about: About, way: &Target) -> Option<u64> {
    let limit = pass.limit(step, 120.0);
    let command = format!("d=/var/tmp; [ -w $d ] || d=/tmp; {AGENT} bench $d");
    let command = command.as_str();
    let (result, seq) = pass
        .operate(step, about, limit, false, |_| async move {
            let output = said(pass, way, command, limit).await?;
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
        .await;
    result.err().map(|_| seq)
}

/// Every member answers in its turn, and nobody else.
async fn balancer(
    pass: &Pass<'_>,
    step: &Step,
    about: About,
    server_step: &str,
    way: &Target,
) -> Option<u64> {
    let limit = pass.limit(step, 60.0);
    let (vip, members) = {
        let board = pass.board.read();
        let found = board.all(&pass.engine.scenario, Thing::LoadBalancer).next();
        let vip = found.and_then(|(_, lb)| lb.value.get("vip_address")?.as_str().map(str::to_owned));
        let guests = board
            .all(&pass.engine.scenario, Thing::Server)
            .filter(|(step, s)| s.agent && *step != server_step);
        (vip, guests.map(|(_, s)| s.name.clone()).collect::<Vec<_>>())
    };
    let Some(vip) = vip else {
        return Some(pass.skip(step, &about, &Unfit::Missing("there is no load balancer".into())));
    };
    let requests = 2 * members.len().max(1);
    let command = format!("for i in $(seq {requests}); do wget -T 4 -qO- http://{vip}/hostname; echo; done");
    let (command, members) = (command.as_str(), &members);
    let (result, seq) = pass
        .operate(step, about, limit, false, |_| async move {
            let output = said(pass, way, command, limit).await?;
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
        .await;
    result.err().map(|_| seq)
}
