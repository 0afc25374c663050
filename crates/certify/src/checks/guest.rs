//! scs-0101: a guest is booted, and what it says on its console is read.

use std::collections::BTreeMap;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use osclient::parameter;
use serde_json::{Value, json};

use super::Notes;
use crate::facts::{Abort, Facts, Flavor, Image, Known};
use crate::journal::{Scope, Thing};
use crate::rules::Guest;

/// What lines of the guest begin with.
const MARK: &str = "_scs-test-";

/// What the guest said.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// The image it was booted from.
    pub image: String,
    /// Lines by topic.
    pub lines: BTreeMap<String, Vec<String>>,
}

impl Output {
    /// Of a console: what follows the mark, by the word before the colon.
    fn parse(image: &str, console: &str) -> Output {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let marked = console.lines().filter_map(|l| l.split_once(MARK)?.1.split_once(':'));
        for (topic, text) in marked {
            lines.entry(topic.to_owned()).or_default().push(text.trim().to_owned());
        }
        Output { image: image.to_owned(), lines }
    }

    fn topic(&self, name: &str) -> Known<&[String]> {
        let found = self.lines.get(name).map(Vec::as_slice);
        found.ok_or_else(|| Abort(format!("the guest ({}) said nothing about {name}", self.image)))
    }
}

/// The entropy the kernel tells of is the constant one.
pub(super) fn entropy(output: &Output, expect: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    let told = output.topic("entropy-avail")?.first().map_or("", String::as_str);
    if told != expect {
        notes.error(format!(
            "the guest ({}) has {told:?} bits of entropy, should have {expect}",
            output.image
        ));
    }
    Ok(notes)
}

/// Random numbers pass the test, with few failures.
pub(super) fn fips(output: &Output, allowed: u64) -> Known<Notes> {
    let mut notes = Notes::default();
    let told = output.topic("fips-test")?.join("\n");
    let failures = told.split("failures: ").skip(1).find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    });
    let failures = failures.ok_or_else(|| {
        Abort(format!(
            "the guest ({}) did not run the FIPS test (is its package mirror reachable?)",
            output.image
        ))
    })?;
    let text = format!("{failures} of 1000 blocks failed the FIPS 140-2 test, at most {allowed} may");
    if failures > allowed {
        notes.error(text);
    } else {
        notes.info(text);
    }
    Ok(notes)
}

/// Debian before Ubuntu before others, newer before older.
fn fitness(image: &Image) -> (u8, u32) {
    let filled = |name| image.text(name).map(|t| t.trim().to_lowercase()).filter(|t| !t.is_empty());
    let (Some(distro), Some(version)) = (filled("os_distro"), filled("os_version")) else { return (0, 0) };
    match distro.as_str() {
        "debian" => {
            let named =
                ["buster", "bullseye", "bookworm", "trixie"].iter().zip(10..).find(|(n, _)| **n == version);
            (2, version.parse().ok().or(named.map(|(_, v)| v)).unwrap_or(0))
        }
        "ubuntu" => {
            let number = version.split_once('.').filter(|(y, m)| y.len() == 2 && m.len() == 2);
            (1, number.and_then(|(y, m)| format!("{y}{m}").parse().ok()).unwrap_or(0))
        }
        _ => (0, 0),
    }
}

fn choose_image(images: &[Image]) -> Known<&Image> {
    // Of equals the first.
    let best = images.iter().rev().max_by_key(|i| fitness(i));
    best.ok_or_else(|| Abort("there is no public image to boot".into()))
}

/// The smallest flavor that holds the image, among those with random numbers from the host if there are any.
fn choose_flavor<'a>(flavors: &'a [Flavor], image: &Image) -> Known<&'a Flavor> {
    let least = image.number("min_ram").unwrap_or(0);
    let fitting: Vec<&Flavor> = flavors.iter().filter(|f| f.ram.unwrap_or(0) >= least).collect();
    let random = |f: &&&Flavor| {
        let told = f.extra_specs.get("hw_rng:allowed").and_then(Value::as_str);
        told.is_some_and(|t| t.eq_ignore_ascii_case("true"))
    };
    let with: Vec<&Flavor> = fitting.iter().filter(random).copied().collect();
    let candidates = if with.is_empty() { fitting } else { with };
    #[expect(clippy::cast_precision_loss, reason = "sizes of flavors")]
    let weight = |f: &Flavor| {
        let part = |n: Option<i64>| n.unwrap_or(0) as f64;
        part(f.vcpus) + part(f.ram) / 3.0 + part(f.disk) / 10.0
    };
    let best = candidates.into_iter().min_by(|a, b| weight(a).total_cmp(&weight(b)));
    best.ok_or_else(|| Abort(format!("no flavor has the {least} MiB that image {} needs", image.name())))
}

/// What cloud-init is told.
fn user_data(guest: &Guest, distro: &str) -> String {
    let mut text = String::from("#cloud-config\n");
    if let Some(mirrors) = guest.mirrors.get(distro) {
        text.push_str("apt:\n");
        for (kind, uri) in mirrors {
            text.push_str(&format!("  {kind}:\n  - {{arches: [default], uri: \"{uri}\"}}\n"));
        }
    }
    let said =
        |command: &str, topic: &str| format!("- [sh, -c, \"{command} 2>&1 | sed 's/^/{MARK}{topic}: /'\"]\n");
    text.push_str(&format!("packages: [{}]\n", guest.package));
    // A login prompt on the console would break into the lines.
    text.push_str("bootcmd:\n- [systemctl, mask, serial-getty@ttyS0.service]\nruncmd:\n");
    text.push_str(&said("cat /proc/sys/kernel/random/entropy_avail", "entropy-avail"));
    text.push_str(&said("rngtest -c 1000 < /dev/random", "fips-test"));
    text.push_str(&format!("- [echo, {MARK}end]\nfinal_message: {MARK}end\n"));
    text
}

/// Boots a guest with a network of its own, and waits until it has said everything.
pub(crate) async fn boot(facts: &Facts) -> Known<Output> {
    let guest = facts.settings.guest.as_ref().ok_or_else(|| Abort("guests were not asked for".into()))?;
    let (images, flavors) = (facts.images().await?, facts.flavors().await?);
    let image = choose_image(&images)?;
    let flavor = choose_flavor(&flavors, image)?;
    let scope = Scope::new(&facts.journal);
    let result = async {
        let network = wire(facts, &scope, guest).await?;
        let server = start(facts, &scope, guest, image, flavor, &network).await?;
        listen(facts, guest, &server).await
    }
    .await;
    let mut notes = Notes::default();
    scope.clear(facts, &mut notes).await;
    let mut output = Output::parse(image.name(), &result?);
    output.lines.entry("left".into()).or_default().extend(notes.0.into_iter().map(|n| n.text));
    Ok(output)
}

async fn make(
    scope: &Scope,
    service: &osclient::Service,
    thing: Thing,
    path: &str,
    key: &str,
    body: Value,
) -> Known<String> {
    let name = body.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let seq = scope.intend(thing, &name).await?;
    let made = service.post(path, json!({ key: body })).await?;
    let id = made.pointer(&format!("/{key}/id")).and_then(Value::as_str).map(str::to_owned);
    let id = id.ok_or_else(|| Abort(format!("{path}: the answer has no id")))?;
    scope.made(seq, &id)?;
    Ok(id)
}

/// A network with a way out; its id.
async fn wire(facts: &Facts, scope: &Scope, guest: &Guest) -> Known<String> {
    let service = facts.network()?;
    let about = facts.description();
    let external =
        service.list(&format!("/networks?{}", parameter("router:external", "True")), "networks").await?;
    let outside = external.first().and_then(|n| n.get("id")).cloned();
    let outside = outside.ok_or_else(|| Abort("there is no external network".into()))?;
    let body = json!({"name": facts.name("0101-net"), "admin_state_up": true, "description": about});
    let network = make(scope, &service, Thing::Network, "/networks", "network", body).await?;
    let body = json!({
        "name": facts.name("0101-subnet"), "network_id": network, "cidr": guest.cidr, "ip_version": 4,
        "enable_dhcp": true, "dns_nameservers": guest.dns, "description": about,
    });
    let subnet = make(scope, &service, Thing::Subnet, "/subnets", "subnet", body).await?;
    let body = json!({
        "name": facts.name("0101-router"), "admin_state_up": true, "description": about,
        "external_gateway_info": {"network_id": outside},
    });
    let router = make(scope, &service, Thing::Router, "/routers", "router", body).await?;
    let seq = scope.intend(Thing::RouterInterface, &format!("{router}/{subnet}")).await?;
    service.put(&format!("/routers/{router}/add_router_interface"), json!({"subnet_id": subnet})).await?;
    scope.made(seq, &router)?;
    Ok(network)
}

async fn start(
    facts: &Facts,
    scope: &Scope,
    guest: &Guest,
    image: &Image,
    flavor: &Flavor,
    network: &str,
) -> Known<String> {
    let compute = facts.compute().await?;
    let gib = image.number("min_disk").unwrap_or(0).max(guest.volume_gib);
    let body = json!({
        "name": facts.name("0101-server"), "flavorRef": flavor.id, "imageRef": "", "min_count": 1, "max_count": 1,
        "networks": [{"uuid": network}],
        "metadata": {"allod-certify": facts.settings.run},
        "user_data": BASE64_STANDARD.encode(user_data(guest, image.text("os_distro").unwrap_or_default())),
        "block_device_mapping_v2": [{
            "boot_index": "0", "delete_on_termination": true, "destination_type": "volume", "source_type": "image",
            "uuid": image.id(), "volume_size": gib.to_string(),
        }],
    });
    let server = make(scope, &compute, Thing::Server, "/servers", "server", body).await?;
    let begin = Instant::now();
    loop {
        let found = compute.get(&format!("/servers/{server}")).await?;
        let fault =
            || found.pointer("/server/fault/message").and_then(Value::as_str).unwrap_or("no reason given");
        match found.pointer("/server/status").and_then(Value::as_str) {
            Some("ACTIVE") => return Ok(server),
            Some("ERROR") => return Err(Abort(format!("the guest went to ERROR: {}", fault()))),
            _ if begin.elapsed().as_secs() > guest.boot_seconds => {
                return Err(Abort(format!("the guest was not ACTIVE within {} s", guest.boot_seconds)));
            }
            _ => tokio::time::sleep(facts.settings.poll).await,
        }
    }
}

/// The console, once the guest has said its last word.
async fn listen(facts: &Facts, guest: &Guest, server: &str) -> Known<String> {
    let compute = facts.compute().await?;
    let begin = Instant::now();
    loop {
        let answer =
            compute.post(&format!("/servers/{server}/action"), json!({"os-getConsoleOutput": {}})).await?;
        let console = answer.get("output").and_then(Value::as_str).unwrap_or_default();
        if console.contains("_scs-test-end") {
            return Ok(console.to_owned());
        }
        if console.contains("Failed to run module scripts-user") {
            return Err(Abort("cloud-init of the guest could not run its commands".into()));
        }
        if begin.elapsed().as_secs() > guest.run_seconds {
            return Err(Abort(format!("the guest did not finish within {} s", guest.run_seconds)));
        }
        tokio::time::sleep(facts.settings.poll).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Image {
        Image(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_newest_debian_is_booted() {
        let images: Vec<Image> =
            [("ubuntu", "24.04"), ("debian", "bookworm"), ("debian", "13"), ("windows", "2025")]
                .iter()
                .map(|(d, v)| {
                    image(&format!(
                        r#"{{"name": "{d} {v}", "os_distro": "{d}", "os_version": "{v}", "min_ram": 512}}"#
                    ))
                })
                .collect();
        assert_eq!(choose_image(&images).unwrap().name(), "debian 13");
        assert_eq!(choose_image(&images[..1]).unwrap().name(), "ubuntu 24.04");
        assert!(choose_image(&[]).is_err());
    }

    #[test]
    fn lines_are_found_amid_others() {
        let console = "[ 12.3] cloud-init[513]: _scs-test-entropy-avail: 256\nnoise\n_scs-test-fips-test: rngtest: FIPS 140-2 \
                       failures: 2\n_scs-test-end\n";
        let output = Output::parse("i", console);
        assert!(entropy(&output, "256").unwrap().fine() && !entropy(&output, "128").unwrap().fine());
        assert!(fips(&output, 5).unwrap().fine() && !fips(&output, 1).unwrap().fine());
        assert!(fips(&Output::default(), 5).is_err());
    }

    #[test]
    fn what_cloud_init_is_told_is_yaml() {
        let scope = crate::rules::Scope::builtin(crate::rules::Kind::Iaas).unwrap();
        for distro in ["debian", "ubuntu", "other"] {
            let text = user_data(scope.guest.as_ref().unwrap(), distro);
            let value: Value = serde_norway::from_str(&text).unwrap();
            assert_eq!(value.get("apt").is_some(), distro != "other", "{text}");
            assert!(value["runcmd"].as_array().unwrap().iter().all(Value::is_array), "{text}");
        }
    }
}
