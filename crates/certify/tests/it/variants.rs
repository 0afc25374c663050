//! A cloud that passes every case, and what happens to it: each requirement broken in turn, and what the standard allows.

use std::collections::BTreeMap;

use base::{Clock, SystemClock, Timestamp};
use certify::checks::Verdict;
use certify::rules::{Check, Kind, Scope};
use serde_json::{Value, json};

use super::stub::World;

/// One change of the right cloud, and what a case must then say.
pub struct Variant {
    /// `CASE.WHAT`.
    pub name: String,
    /// The case.
    pub case: String,
    /// What it must come to.
    pub expect: Verdict,
    /// The change.
    pub change: Box<dyn Fn(&mut World) + Send + Sync>,
}

fn ago(days: i64) -> Timestamp {
    SystemClock.now().plus_secs(-days * 86_400)
}

fn day(days: i64) -> String {
    ago(days).iso_seconds().chars().take(10).collect()
}

/// An image that says everything right.
fn image(name: &str, distro: &str, version: &str, source: &str) -> Value {
    let id = format!(
        "10000000-0000-4000-8000-{:012}",
        name.bytes().fold(7_u64, |a, b| (a * 31 + u64::from(b)) % 1_000_000_000_000)
    );
    json!({
        "id": id, "name": name, "status": "active", "visibility": "public", "os_hidden": false, "size": 600_000_000, "tags": [],
        "min_disk": 10, "min_ram": 512, "created_at": ago(2).iso_seconds(), "updated_at": ago(2).iso_seconds(),
        "os_hash_algo": "sha512", "architecture": "x86_64", "os_distro": distro, "os_version": version,
        "os_purpose": "generic", "hw_disk_bus": "scsi", "hypervisor_type": "kvm", "hw_rng_model": "virtio",
        "image_build_date": day(3), "image_original_user": distro, "image_source": source, "image_description": "https://example.org/",
        "replace_frequency": "monthly", "provided_until": "none", "uuid_validity": "last-3", "hotfix_hours": "0",
        "disk_format": "qcow2", "container_format": "bare", "checksum": "d41d8cd98f00b204e9800998ecf8427e", "protected": false,
    })
}

fn rule(direction: &str, family: &str) -> Value {
    let ingress = direction == "ingress";
    json!({
        "id": format!("{direction}-{family}"), "direction": direction, "ethertype": family, "remote_ip_prefix": null,
        "remote_group_id": if ingress { json!("PARENT") } else { Value::Null }, "used_in_default_sg": true,
        "used_in_non_default_sg": !ingress, "protocol": null, "port_range_min": null, "port_range_max": null,
    })
}

const CONSOLE: &str = "[    5.1] cloud-init[513]: _scs-test-entropy-avail: 256\n\
    [    6.2] cloud-init[513]: _scs-test-fips-test: rngtest: FIPS 140-2 successes: 998\n\
    [    6.2] cloud-init[513]: _scs-test-fips-test: rngtest: FIPS 140-2 failures: 2\n_scs-test-end\n";

/// The right cloud.
pub fn right() -> World {
    static RIGHT: std::sync::OnceLock<World> = std::sync::OnceLock::new();
    RIGHT.get_or_init(make_right).clone()
}

fn make_right() -> World {
    let scope = Scope::builtin(Kind::Iaas).unwrap();
    let flavors = scope.testcases.iter().filter_map(|case| match &case.check {
        Check::Flavor { name, vcpus, ram_mib, disk_gib, extra_specs } => Some(json!({
            "id": case.id, "name": name, "vcpus": vcpus, "ram": ram_mib, "disk": disk_gib, "extra_specs": extra_specs,
            "OS-FLV-EXT-DATA:ephemeral": 0, "swap": 0, "os-flavor-access:is_public": true,
        })),
        _ => None,
    });
    let capi =
        "https://nbg1.your-objectstorage.com/osism/openstack-k8s-capi-images/ubuntu-2404-kube-v1.36.qcow2";
    let mut images = vec![
        image(
            "Ubuntu 24.04",
            "ubuntu",
            "24.04",
            "https://cloud-images.ubuntu.com/releases/noble/release-20261101/i.img",
        ),
        image("Ubuntu 22.04", "ubuntu", "22.04", "https://cloud-images.ubuntu.com/jammy/i.img"),
        image("Ubuntu 20.04", "ubuntu", "20.04", "https://cloud-images.ubuntu.com/focal/i.img"),
        image("Debian 13", "debian", "13", "https://cdimage.debian.org/cdimage/cloud/trixie/i.qcow2"),
        image("Debian 12", "debian", "12", "https://cloud.debian.org/images/cloud/bookworm/i.qcow2"),
        image("Debian 11", "debian", "11", "https://cloud.debian.org/images/cloud/bullseye/i.qcow2"),
    ];
    for name in ["ubuntu-capi-image v1.36", "ubuntu-capi-image-v1.36.2"] {
        let mut node = image(name, "ubuntu", "24.04", capi);
        node["os_purpose"] = json!("k8snode");
        images.push(node);
    }
    let services = [
        "identity",
        "compute",
        "image",
        "network",
        "block-storage",
        "volumev3",
        "placement",
        "load-balancer",
        "key-manager",
        "object-store",
        "object-store-s3",
    ];
    let external = json!({"id": "20000000-0000-4000-8000-000000000001", "name": "public", "router:external": true, "is_default": true, "status": "ACTIVE"});
    let pool = json!({"id": "p", "name": "six", "ip_version": 6, "shared": true, "is_default": true});
    let types = [
        ("__DEFAULT__", Value::Null),
        ("both", json!("[scs:encrypted, replicated] safe")),
        ("plain", json!("nothing said")),
    ];
    World {
        roles: vec!["member".into(), "reader".into(), "load-balancer_member".into()],
        catalog: services.map(str::to_owned).to_vec(),
        flavors: flavors.collect(),
        images,
        volume_types: types
            .iter()
            .map(|(n, d)| json!({"id": n, "name": n, "description": d, "is_public": true, "extra_specs": {}}))
            .collect(),
        default_rules: Some(vec![
            rule("egress", "IPv4"),
            rule("egress", "IPv6"),
            rule("ingress", "IPv4"),
            rule("ingress", "IPv6"),
        ]),
        group_rules: vec![rule("egress", "IPv4"), rule("egress", "IPv6")],
        console: CONSOLE.into(),
        faults: BTreeMap::new(),
        volume_status: "available".into(),
        backup_status: "available".into(),
        restores: true,
        slow: 0,
        lists_secrets: true,
        s3: 0,
        compute: "2.96".into(),
        things: BTreeMap::from([
            ("network/networks".to_owned(), vec![external]),
            ("network/subnetpools".to_owned(), vec![pool]),
            ("network/extensions".to_owned(), vec![json!({"alias": "dns-integration", "name": "DNS"})]),
        ]),
        files: BTreeMap::new(),
        next: 0,
    }
}

#[derive(Default)]
struct All(Vec<Variant>);

impl All {
    fn add(
        &mut self,
        expect: Verdict,
        case: &str,
        what: &str,
        change: impl Fn(&mut World) + Send + Sync + 'static,
    ) {
        let name = format!("{case}.{what}");
        self.0.push(Variant { name, case: case.into(), expect, change: Box::new(change) });
    }

    fn fail(&mut self, case: &str, what: &str, change: impl Fn(&mut World) + Send + Sync + 'static) {
        self.add(Verdict::Fail, case, what, change);
    }

    fn pass(&mut self, case: &str, what: &str, change: impl Fn(&mut World) + Send + Sync + 'static) {
        self.add(Verdict::Pass, case, what, change);
    }

    fn abort(&mut self, case: &str, what: &str, change: impl Fn(&mut World) + Send + Sync + 'static) {
        self.add(Verdict::Abort, case, what, change);
    }

    /// The first image's property takes values.
    fn property(&mut self, case: &str, property: &'static str, wrong: &[Value], right: &[Value]) {
        let set = |value: Value| move |w: &mut World| w.images[0][property] = value.clone();
        for (index, value) in wrong.iter().enumerate() {
            self.fail(case, &format!("wrong{index}"), set(value.clone()));
        }
        for (index, value) in right.iter().enumerate() {
            self.pass(case, &format!("legal{index}"), set(value.clone()));
        }
    }
}

/// A flavor of one's own.
fn flavor(name: &str, vcpus: i64, ram: i64, disk: i64) -> Value {
    json!({"id": name, "name": name, "vcpus": vcpus, "ram": ram, "disk": disk, "extra_specs": {}})
}

fn fault(call: &'static str, status: u16) -> impl Fn(&mut World) + Send + Sync {
    move |w| {
        w.faults.insert(call.into(), status);
    }
}

/// Every variant.
pub fn all() -> Vec<Variant> {
    let mut all = All::default();
    flavors(&mut all);
    guests(&mut all);
    image_properties(&mut all);
    image_dates(&mut all);
    images(&mut all);
    volumes(&mut all);
    groups(&mut all);
    services(&mut all);
    secrets(&mut all);
    for (index, roles) in
        [vec!["member", "admin"], vec!["member", "manager"], vec!["reader"]].into_iter().enumerate()
    {
        let roles: Vec<String> = roles.into_iter().map(str::to_owned).collect();
        all.abort("scs-0123-service-compute", &format!("roles{index}"), move |w| w.roles.clone_from(&roles));
    }
    all.0
}

fn flavors(all: &mut All) {
    let case = "scs-0100-syntax-check";
    for (index, name) in
        ["SCS-2-4", "SCS-1V-1.3", "SCS-4V-16_hwv_kvm", "SCS-2v-4", "SCS-1V-2_i7", "SCS-1V-2_GNa_ib"]
            .into_iter()
            .enumerate()
    {
        all.fail(case, &format!("wrong{index}"), move |w| w.flavors.push(flavor(name, 64, 1 << 20, 5000)));
    }
    for (index, name) in [
        "SCS-2V:4:20s",
        "m1.tiny",
        "scs-whatever",
        "SCS-2C-4-3x10s_bms_z3",
        "SCS-16T-64-200s_GNa-72-24_ib",
        "SCS-1V-0.5",
    ]
    .into_iter()
    .enumerate()
    {
        all.pass(case, &format!("legal{index}"), move |w| w.flavors.push(flavor(name, 64, 1 << 20, 5000)));
    }
    all.abort(case, "broken-list", fault("GET compute/v2.1/flavors", 500));
    let case = "scs-0100-semantics-check";
    all.fail(case, "cpus", |w| w.flavors.push(flavor("SCS-4V-8_kvm", 3, 8192, 0)));
    all.fail(case, "ram", |w| w.flavors.push(flavor("SCS-4V-4_kvm", 4, 4000, 0)));
    all.fail(case, "disk", |w| w.flavors.push(flavor("SCS-4V-4-20_kvm", 4, 4096, 19)));
    all.pass(case, "more-than-said", |w| w.flavors.push(flavor("SCS-4V-4-20_kvm", 8, 8192, 40)));
    all.pass(case, "rounded", |w| w.flavors.push(flavor("SCS-4V-4_kvm", 4, 4045, 0)));
    all.pass(case, "not-readable", |w| w.flavors.push(flavor("SCS-4-4", 0, 0, 0)));
    all.abort(case, "disk-without-size", |w| w.flavors.push(flavor("SCS-4V-4-n", 4, 4096, 20)));
    let scope = Scope::builtin(Kind::Iaas).unwrap();
    for case in &scope.testcases {
        let Check::Flavor { name, disk_gib, .. } = &case.check else { continue };
        let (id, name, disk) = (case.id.clone(), name.clone(), *disk_gib);
        let change = |id: &str, field: &'static str, value: Value| {
            let id = id.to_owned();
            move |w: &mut World| {
                for f in w.flavors.iter_mut().filter(|f| f["id"] == id) {
                    f[field] = value.clone();
                }
            }
        };
        let gone = id.clone();
        all.fail(&id, "missing", move |w| w.flavors.retain(|f| f["id"] != gone));
        all.fail(&id, "ram", change(&id, "ram", json!(999)));
        all.fail(&id, "disk", change(&id, "disk", json!(disk + 1)));
        all.fail(&id, "no-extra-specs", change(&id, "extra_specs", json!({})));
        all.pass(&id, "another-name", change(&id, "name", json!(format!("m.{name}"))));
    }
    all.pass("scs-0103-flavor-1v-2", "extra-specs-one-by-one", |w| w.compute = "2.60".into());
    all.pass("scs-0103-flavor-1v-2", "more-extra-specs", |w| {
        w.flavors[0]["extra_specs"]["hw:mem_page_size"] = json!("any")
    });
    all.abort("scs-0103-flavor-1v-2", "no-list", fault("GET compute/v2.1/flavors", 403));
}

fn guests(all: &mut All) {
    let says = |text: String| move |w: &mut World| w.console.clone_from(&text);
    all.fail("scs-0101-entropy-avail", "old-kernel", says(CONSOLE.replace("avail: 256", "avail: 3000")));
    all.pass(
        "scs-0101-entropy-avail",
        "bare-lines",
        says(CONSOLE.replace("[    5.1] cloud-init[513]: ", "")),
    );
    all.abort("scs-0101-entropy-avail", "silent", says("_scs-test-end\n".into()));
    all.abort("scs-0101-entropy-avail", "no-images", |w| w.images.clear());
    all.fail("scs-0101-fips-test", "six", says(CONSOLE.replace("failures: 2", "failures: 6")));
    all.pass("scs-0101-fips-test", "five", says(CONSOLE.replace("failures: 2", "failures: 5")));
    all.abort(
        "scs-0101-fips-test",
        "not-installed",
        says(CONSOLE.replace("failures: 2", "rngtest: not found")),
    );
    all.abort("scs-0101-fips-test", "no-external-network", |w| drop(w.things.remove("network/networks")));
}

fn image_properties(all: &mut All) {
    let null = Value::Null;
    let p = |name: &str| format!("scs-0102-prop-{name}");
    all.property(
        &p("architecture"),
        "architecture",
        &[json!("amd64"), null.clone()],
        &[json!("aarch64"), json!("risc-v")],
    );
    all.property(&p("hash_algo"), "os_hash_algo", &[json!("md5"), null.clone()], &[json!("sha256")]);
    all.property(&p("min_disk"), "min_disk", &[json!(0), null.clone()], &[json!(1)]);
    all.fail(&p("min_disk"), "too-small", |w| w.images[0]["size"] = json!((10_i64 << 30) + 1));
    all.pass(&p("min_disk"), "exact", |w| w.images[0]["size"] = json!(10_i64 << 30));
    all.abort(&p("min_disk"), "no-size", |w| w.images[0]["size"] = Value::Null);
    all.property(&p("min_ram"), "min_ram", &[json!(0), null.clone()], &[json!(32)]);
    all.property(&p("os_version"), "os_version", &[json!(""), null.clone()], &[json!("rolling")]);
    all.property(&p("os_distro"), "os_distro", &[json!(""), null.clone()], &[json!("Arch Linux")]);
    all.property(
        &p("os_purpose"),
        "os_purpose",
        &[json!("server"), null.clone()],
        &[json!("minimal"), json!("oldgeneric")],
    );
    all.property(
        &p("hw_disk_bus"),
        "hw_disk_bus",
        &[json!("ide"), json!("")],
        &[json!("virtio"), null.clone()],
    );
    all.property(
        &p("hypervisor_type"),
        "hypervisor_type",
        &[json!("docker")],
        &[json!("qemu"), null.clone()],
    );
    all.property(&p("hw_rng_model"), "hw_rng_model", &[json!("isa")], std::slice::from_ref(&null));
    all.property(
        &p("image_original_user"),
        "image_original_user",
        &[json!(""), null.clone()],
        &[json!("none")],
    );
    all.property(
        &p("image_source"),
        "image_source",
        &[json!("example.org/i.img"), json!("file:///i"), null.clone()],
        &[json!("private"), json!("ftp://h/i")],
    );
    all.property(&p("image_description"), "image_description", &[json!(""), null.clone()], &[json!("text")]);
    all.property(
        &p("replace_frequency"),
        "replace_frequency",
        &[json!("often"), null.clone()],
        &[json!("never"), json!("daily"), json!("critical_bug")],
    );
    all.property(
        &p("provided_until"),
        "provided_until",
        &[json!(""), null.clone()],
        &[json!("notice"), json!("2099-12-31")],
    );
    all.property(
        &p("uuid_validity"),
        "uuid_validity",
        &[json!("last-few"), json!("always"), json!("")],
        &[null.clone(), json!("forever"), json!("last-12"), json!("2099-12-31"), json!("notice")],
    );
    all.property(
        &p("hotfix_hours"),
        "hotfix_hours",
        &[json!("soon"), json!("-1")],
        &[json!(""), json!("48"), null],
    );
    for property in ["architecture", "min_disk", "image_source"] {
        all.abort(&p(property), "no-list", fault("GET image/v2/images", 500));
        // What only the project sees is its own business.
        let case = p(property);
        all.pass(&case, "private", move |w| {
            w.images.push(json!({"id": "x", "name": "mine", "visibility": "private", "status": "active"}));
        });
    }
}

fn image_dates(all: &mut All) {
    let case = "scs-0102-prop-image_build_date";
    all.property(
        case,
        "image_build_date",
        &[json!("yesterday"), Value::Null, json!(day(-1)), json!(day(1))],
        &[
            json!(format!("{} 12:00", day(3))),
            json!(format!("{} 12:00:59", day(3))),
            json!(format!("{}T00:00:00Z", day(3))),
        ],
    );
    all.fail(case, "created-with-fraction", |w| w.images[0]["created_at"] = json!(ago(2).iso_micros()));
    let case = "scs-0102-image-recency";
    let old = |name: &'static str, until: Value| {
        move |w: &mut World| {
            let mut old = image(name, "ubuntu", "24.04", "private");
            old["image_build_date"] = json!(day(60));
            old["created_at"] = json!(ago(59).iso_seconds());
            old["os_purpose"] = json!("oldgeneric");
            old["provided_until"] = until.clone();
            w.images.push(old);
        }
    };
    all.fail(case, "outdated", old("Old", json!("2099-12-31")));
    all.fail(case, "outdated-without-current", old("Fedora 20260901", json!("2099-12-31")));
    all.fail(case, "until-no-date", old("Old", json!("later")));
    all.pass(case, "replaced", old("Ubuntu 24.04 20260801", json!("2099-12-31")));
    all.pass(case, "no-promise", old("Old", json!("none")));
    all.pass(case, "over", old("Old", json!(day(5))));
    all.abort(case, "until-unset", old("Old", Value::Null));
    all.pass(case, "yearly", |w| {
        w.images[0]["replace_frequency"] = json!("yearly");
        w.images[0]["image_build_date"] = json!(day(300));
        w.images[0]["provided_until"] = json!("2099-12-31");
    });
    all.fail(case, "daily", |w| {
        w.images[0]["replace_frequency"] = json!("daily");
        w.images[0]["provided_until"] = json!("2099-12-31");
    });
    let case = "scs-0102-os_purpose-uniqueness";
    let second = |field: &'static str, value: Value| {
        move |w: &mut World| {
            let mut second = image("Ubuntu 24.04 again", "ubuntu", "24.04", "private");
            second[field] = value.clone();
            w.images.push(second);
        }
    };
    all.fail(case, "twice", second("name", json!("Ubuntu 24.04 twice")));
    all.pass(case, "hidden", second("os_hidden", json!(true)));
    all.pass(case, "another-purpose", second("os_purpose", json!("minimal")));
    all.pass(case, "another-architecture", second("architecture", json!("aarch64")));
    all.pass(case, "community", second("visibility", json!("community")));
}

fn images(all: &mut All) {
    let named = [
        ("ubuntu-2404", "Ubuntu 24.04"),
        ("ubuntu-2204", "Ubuntu 22.04"),
        ("ubuntu-2004", "Ubuntu 20.04"),
        ("debian-13", "Debian 13"),
        ("debian-12", "Debian 12"),
        ("debian-11", "Debian 11"),
        ("capi-1", "ubuntu-capi-image v1.36"),
        ("capi-2", "ubuntu-capi-image-v1.36.2"),
    ];
    let scope = Scope::builtin(Kind::Iaas).unwrap();
    for (id, name) in named {
        let case = format!("scs-0104-source-{id}");
        all.fail(&case, "elsewhere", move |w| {
            w.images
                .iter_mut()
                .filter(|i| i["name"] == name)
                .for_each(|i| i["image_source"] = json!("https://example.org/i.img"));
        });
        all.fail(&case, "unset", move |w| {
            w.images.iter_mut().filter(|i| i["name"] == name).for_each(|i| i["image_source"] = Value::Null);
            w.images
                .iter_mut()
                .filter(|i| i["name"] == name)
                .for_each(|i| drop(i.as_object_mut().unwrap().remove("image_source")));
        });
        all.pass(&case, "absent", move |w| w.images.retain(|i| i["name"] != name));
        let case = format!("scs-0104-image-{id}");
        if scope.case(&case).is_some() {
            all.fail(&case, "missing", move |w| w.images.retain(|i| i["name"] != name));
            all.fail(&case, "private", move |w| {
                w.images
                    .iter_mut()
                    .filter(|i| i["name"] == name)
                    .for_each(|i| i["visibility"] = json!("private"));
            });
            all.pass(&case, "community", move |w| {
                w.images
                    .iter_mut()
                    .filter(|i| i["name"] == name)
                    .for_each(|i| i["visibility"] = json!("community"));
            });
        }
    }
}

fn volumes(all: &mut All) {
    let described = |text: Value| move |w: &mut World| w.volume_types[2]["description"] = text.clone();
    let case = "scs-0114-syntax-check";
    for (index, text) in
        ["[scs:replicated, encrypted]", "[scs:encrypted, encrypted]", "[scs:fast]", "[scs: ]"]
            .into_iter()
            .enumerate()
    {
        all.fail(case, &format!("wrong{index}"), described(json!(text)));
    }
    for (index, text) in [
        "[scs:replicated] x",
        "[scs:encrypted,replicated]",
        "text [scs:fast]",
        "[scs:]",
        "[other:fast]",
        "[scs:a[b]]",
    ]
    .into_iter()
    .enumerate()
    {
        all.pass(case, &format!("legal{index}"), described(json!(text)));
    }
    all.abort(case, "no-list", fault("GET volume/v3/5f705f705f705f705f705f705f705f70/types", 500));
    for aspect in ["encrypted", "replicated"] {
        let case = format!("scs-0114-{aspect}-type");
        all.fail(&case, "none", |w| w.volume_types[1]["description"] = json!("safe"));
        all.pass(&case, "alone", move |w| {
            w.volume_types[1]["description"] = json!(format!("[scs:{aspect}]"))
        });
    }
    let case = "scs-0117-test-backup";
    all.fail(case, "no-service", fault("POST volume/v3/5f705f705f705f705f705f705f705f70/backups", 404));
    all.fail(case, "error", |w| w.backup_status = "error".into());
    all.fail(case, "volume-error", |w| w.volume_status = "error".into());
    all.fail(case, "never-restored", |w| w.restores = false);
    all.fail(case, "broken", fault("GET volume/v3/5f705f705f705f705f705f705f705f70/backups", 500));
    all.fail(case, "nameless", |w| {
        w.things
            .entry("volume/volumes".into())
            .or_default()
            .push(json!({"id": "n", "name": null, "status": "in-use", "attachments": []}));
    });
    // Its own service does not run; what it made stays.
    let backups = "DELETE volume/v3/5f705f705f705f705f705f705f705f70/backups";
    all.pass(case, "backup-may-not-delete", fault(backups, 404));
    all.pass(case, "slow", |w| w.slow = 3);
    all.pass(case, "others-things", |w| {
        w.things
            .entry("volume/volumes".into())
            .or_default()
            .push(json!({"id": "o", "name": "others", "status": "in-use", "attachments": []}));
    });
}

fn groups(all: &mut All) {
    let case = "scs-0115-default-rules";
    let rules = |change: fn(&mut Vec<Value>)| move |w: &mut World| change(w.default_rules.as_mut().unwrap());
    all.fail(
        case,
        "ssh-open",
        rules(|r| {
            r.push(json!({"id": "i", "direction": "ingress", "ethertype": "IPv4", "remote_group_id": null,
        "remote_ip_prefix": "0.0.0.0/0", "used_in_default_sg": true, "used_in_non_default_sg": false}))
        }),
    );
    all.fail(case, "own-group-in-custom", rules(|r| r[2]["used_in_non_default_sg"] = json!(true)));
    all.fail(case, "egress-with-prefix", rules(|r| r[0]["remote_ip_prefix"] = json!("0.0.0.0/0")));
    all.fail(case, "no-ipv6", rules(|r| drop(r.remove(1))));
    all.fail(case, "none", rules(Vec::clear));
    all.fail(case, "not-in-custom", rules(|r| r[0]["used_in_non_default_sg"] = json!(false)));
    all.pass(case, "no-ingress-at-all", rules(|r| r.truncate(2)));
    all.pass(case, "more-egress", rules(|r| r.push(json!({"id": "e", "direction": "egress", "ethertype": "IPv4", "remote_ip_prefix": "10.0.0.0/8",
        "remote_group_id": null, "used_in_default_sg": true, "used_in_non_default_sg": false}))));
    all.pass(case, "older-cloud", |w| w.default_rules = None);
    all.fail(case, "older-cloud-ingress", |w| {
        w.default_rules = None;
        w.group_rules.push(rule("ingress", "IPv4"));
    });
    all.fail(case, "older-cloud-no-ipv6", |w| {
        w.default_rules = None;
        w.group_rules.truncate(1);
    });
    all.abort(case, "broken", fault("GET network/v2.0/default-security-group-rules", 500));
    all.abort(case, "forbidden", fault("GET network/v2.0/default-security-group-rules", 403));
}

fn services(all: &mut All) {
    let without = |kind: &'static str| move |w: &mut World| w.catalog.retain(|k| k != kind);
    for (name, kind, other) in [
        ("service-compute", "compute", "orchestration"),
        ("service-identity", "identity", "dns"),
        ("service-image", "image", "dns"),
        ("service-network", "network", "dns"),
        ("service-load-balancer", "load-balancer", "dns"),
        ("service-placement", "placement", "dns"),
        ("service-s3", "object-store-s3", "object-store"),
    ] {
        all.fail(&format!("scs-0123-{name}"), "missing", without(kind));
        all.pass(&format!("scs-0123-{name}"), "beside-others", move |w| w.catalog.push(other.into()));
    }
    all.fail("scs-0123-service-s3", "other-name", |w| {
        w.catalog.iter_mut().filter(|k| *k == "object-store-s3").for_each(|k| *k = "s3".into())
    });
    let case = "scs-0123-storage-apis";
    all.fail(case, "missing", |w| w.catalog.retain(|k| k != "block-storage" && k != "volumev3"));
    for kind in ["volume", "volumev3", "block-storage"] {
        all.pass(case, kind, move |w| {
            w.catalog.retain(|k| k != "block-storage" && k != "volumev3");
            w.catalog.push(kind.into());
        });
    }
    let case = "scs-0123-swift-s3";
    all.fail(case, "no-s3", |w| w.s3 = 1);
    all.pass(case, "no-swift", without("object-store"));
    all.abort(case, "open-to-all", |w| w.s3 = 2);
    all.fail("scs-0116-presence", "missing", without("key-manager"));
    all.pass("scs-0116-presence", "alone", |w| w.catalog = vec!["key-manager".into(), "identity".into()]);
}

fn secrets(all: &mut All) {
    let case = "scs-0116-permissions";
    all.fail(case, "may-not-list", fault("GET keys/v1/secrets", 403));
    all.fail(case, "may-not-make", fault("POST keys/v1/secrets", 403));
    all.fail(case, "may-not-delete", fault("DELETE keys/v1/secrets", 403));
    all.pass(case, "no-key-manager", |w| w.catalog.retain(|k| k != "key-manager"));
    all.abort(case, "broken", fault("POST keys/v1/secrets", 500));
    all.abort(case, "not-listed", |w| w.lists_secrets = false);
}
