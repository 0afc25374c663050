//! A domain whose users are in an LDAP directory: a real slapd.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ldap3::{Ldap, LdapConnAsync, Mod};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::World;

const ROOT: &str = "cn=root,dc=test";
const ENTRIES: &str = "
dn: dc=test
objectClass: dcObject
objectClass: organization
dc: test
o: test

dn: ou=Users,dc=test
objectClass: organizationalUnit
ou: Users

dn: ou=UserGroups,dc=test
objectClass: organizationalUnit
ou: UserGroups
";

/// slapd on free ports, one of them TLS alone, with nobody but the administrator and who reads.
struct Slapd {
    dir: TempDir,
    port: u16,
    tls_port: u16,
    child: Option<Child>,
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(program: &str, line: &[&str], input: &str) {
    let mut child =
        Command::new(program).args(line).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
}

impl Slapd {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(dir.path().join("db")).unwrap();
        let modules = "/usr/lib/ldap";
        let cert = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(at("cert.pem"), cert.cert.pem()).unwrap();
        std::fs::write(at("key.pem"), cert.signing_key.serialize_pem()).unwrap();
        let text = format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\nmodulepath {modules}\nmoduleload back_mdb\n\
             pidfile {}\nTLSCertificateFile {}\nTLSCertificateKeyFile {}\nsizelimit unlimited\ndatabase mdb\nmaxsize 104857600\nsuffix dc=test\nrootdn {ROOT}\nrootpw root-password\n\
             directory {}\naccess to attrs=userPassword by anonymous auth by * none\naccess to * by * read\n",
            at("pid"),
            at("cert.pem"),
            at("key.pem"),
            at("db"),
        );
        std::fs::write(dir.path().join("slapd.conf"), text).unwrap();
        run("/usr/sbin/slapadd", &["-f", &at("slapd.conf")], ENTRIES);
        let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, tls_port] = listeners.map(|l| l.local_addr().unwrap().port());
        let mut slapd = Slapd { dir, port, tls_port, child: None };
        slapd.start().await;
        slapd
    }

    fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    fn tls_url(&self) -> String {
        format!("ldaps://127.0.0.1:{}", self.tls_port)
    }

    async fn start(&mut self) {
        let conf: &Path = &self.dir.path().join("slapd.conf");
        let child = Command::new("/usr/sbin/slapd")
            .args(["-d", "0", "-h", &format!("{} {}", self.url(), self.tls_url()), "-f"])
            .arg(conf)
            .stderr(Stdio::null())
            .spawn()
            .expect("slapd is needed: scripts/setup test");
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(20);
        while LdapConnAsync::new(&self.url()).await.is_err() {
            assert!(Instant::now() < until, "slapd does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    async fn root(&self) -> Ldap {
        let (connection, mut ldap) = LdapConnAsync::new(&self.url()).await.unwrap();
        tokio::spawn(connection.drive());
        ldap.simple_bind(ROOT, "root-password").await.unwrap().success().unwrap();
        ldap
    }

    async fn add_user(&self, uid: &str) {
        let set = |text: String| HashSet::from([text]);
        let attributes = vec![
            ("objectClass".to_owned(), set("inetOrgPerson".into())),
            ("cn".to_owned(), set(format!("id-{uid}"))),
            ("sn".to_owned(), set(uid.to_owned())),
            ("uid".to_owned(), set(uid.to_owned())),
            ("mail".to_owned(), set(format!("{uid}@test"))),
            ("employeeType".to_owned(), set("TRUE".into())),
            ("userPassword".to_owned(), set(format!("secret-of-{uid}"))),
        ];
        self.root().await.add(&user_dn(uid), attributes).await.unwrap().success().unwrap();
    }

    async fn change(&self, dn: &str, change: Mod<String>) {
        self.root().await.modify(dn, vec![change]).await.unwrap().success().unwrap();
    }
}

fn user_dn(uid: &str) -> String {
    format!("cn=id-{uid},ou=Users,dc=test")
}

fn group_dn(name: &str) -> String {
    format!("cn={name},ou=UserGroups,dc=test")
}

fn one(text: impl Into<String>) -> HashSet<String> {
    HashSet::from([text.into()])
}

async fn configure(world: &World, domain: &str, url: &str, more: Value) {
    let mut ldap = json!({
        "url": url, "suffix": "dc=test", "user": ROOT, "password": "root-password", "user_name_attribute": "uid",
        "group_name_attribute": "cn", "user_enabled_attribute": "employeeType"});
    ldap.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config = json!({"config": {"identity": {"driver": "ldap"}, "ldap": ldap}});
    let answer = world.admin.put(&format!("/v3/domains/{domain}/config"), config).await;
    assert!(answer.status < 300 && !answer.text().contains("root-password"), "{}", answer.text());
}

async fn login(world: &World, name: &str, password: &str) -> api::testing::Answer {
    let user = json!({"name": name, "domain": {"name": "corp"}, "password": password});
    world.auth(json!({"methods": ["password"], "password": {"user": user}}), None).await
}

async fn names(world: &World, path: &str, key: &str) -> Vec<String> {
    let all = world.admin.get(path).await.expect(200).at(&format!("/{key}"));
    let mut names: Vec<String> =
        all.as_array().unwrap().iter().map(|u| u["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// `INSERT`s of one table, as mysqldump writes them.
fn table(name: &str, columns: &str, rows: &[&str]) -> String {
    let columns: Vec<String> = columns.split(' ').map(|c| format!("  `{c}` text")).collect();
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells =
                row.split(' ').map(|cell| if cell == "NULL" { cell.to_owned() } else { format!("'{cell}'") });
            format!("({})", cells.collect::<Vec<_>>().join(","))
        })
        .collect();
    format!(
        "CREATE TABLE `{name}` (\n{},\n  PRIMARY KEY (`x`)\n) ENGINE=InnoDB;\nINSERT INTO `{name}` VALUES {};\n",
        columns.join(",\n"),
        rows.join(",")
    )
}

/// A Keystone in which bob has logged in and ann has not; the group ops has a role.
fn keystone(url: &str) -> String {
    let id = |kind: &str, local: &str| {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(format!("corpid{kind}{local}")))
    };
    let (ann, bob, ops) = (id("user", "id-ann"), id("user", "id-bob"), id("group", "ops"));
    let root = "<<keystone.domain.root>>";
    [
        table("role", "id name extra domain_id description", &["roleid member {} <<null>> NULL"]),
        table(
            "project",
            "id name extra description enabled domain_id parent_id is_domain",
            &[
                &format!("{root} {root} {{}} d 0 {root} NULL 1"),
                &format!("default Default {{}} d 1 {root} NULL 1"),
                &format!("corpid corp {{}} d 1 {root} NULL 1"),
                "projectid p {} d 1 corpid corpid 0",
            ],
        ),
        table(
            "user",
            "id extra enabled default_project_id created_at last_active_at domain_id",
            &[&format!("{bob} {{}} 1 NULL NULL NULL corpid")],
        ),
        table("nonlocal_user", "domain_id name user_id", &[&format!("corpid bob {bob}")]),
        table(
            "id_mapping",
            "public_id domain_id local_id entity_type",
            &[
                &format!("{bob} corpid id-bob user"),
                &format!("{ann} corpid id-ann user"),
                &format!("{ops} corpid ops group"),
            ],
        ),
        table(
            "assignment",
            "type actor_id target_id role_id inherited",
            &[
                &format!("GroupProject {ops} projectid roleid 0"),
                &format!("UserProject {bob} projectid roleid 0"),
            ],
        ),
        table(
            "whitelisted_config",
            "domain_id group option value",
            &[
                r#"corpid identity driver "ldap""#,
                &format!(r#"corpid ldap url "{url}""#),
                r#"corpid ldap suffix "dc=test""#,
                &format!(r#"corpid ldap user "{ROOT}""#),
                r#"corpid ldap user_name_attribute "uid""#,
                r#"corpid ldap group_name_attribute "cn""#,
            ],
        ),
        table(
            "sensitive_config",
            "domain_id group option value",
            &[r#"corpid ldap password "root-password""#],
        ),
    ]
    .concat()
}

#[tokio::test]
async fn a_keystones_directory_is_taken_over_with_its_grants() {
    use identity::import::{Secrets, dump::Dump, import, tables};
    let slapd = Slapd::new().await;
    let (_other, _) = corp(&slapd).await;
    let dir = TempDir::new().unwrap();
    let at = |name: &str| identity::Repository::Directory(dir.path().join(name));
    let clock = std::sync::Arc::new(base::ManualClock::default());
    let store = store::Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap();
    // A key of Keystone's, as files of credential keys are.
    let there = dir.path().join("there");
    std::fs::create_dir(&there).unwrap();
    let key = there.join("0");
    std::fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::copy(&key, there.join("1")).unwrap();
    let entropy = base::Entropy::seeded(3);
    let secrets = Secrets::open(&there, at("credential-keys"), entropy, &*clock).unwrap();
    let dump = Dump::read(keystone(&slapd.url()).as_bytes(), &tables()).unwrap();
    let report = import(&store, &dump, Some(&secrets), false).await.unwrap();
    assert!(report.left.is_empty(), "{report}");
    let config = identity::Config { keys: at("fernet"), ..crate::world::config() };
    let world = World::on(config, store, clock, 1).await;
    for who in ["ann", "bob"] {
        let user = json!({"name": who, "domain": {"name": "corp"}, "password": format!("secret-of-{who}")});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let scope = json!({"project": {"id": "projectid"}});
        let answer = world.auth(identity, Some(scope)).await.expect(201);
        assert_eq!(world.roles_of(answer.header("x-subject-token")).await, ["member", "reader"], "{who}");
    }
    world.state.read_directories().await.unwrap();
    assert_eq!(names(&world, "/v3/users?domain_id=corpid", "users").await, ["ann", "bob"]);
    assert_eq!(names(&world, "/v3/groups?domain_id=corpid", "groups").await, ["ops"]);
}

/// A world with a domain whose users are in `slapd`: ann and bob, of whom ann is in `ops`.
async fn corp(slapd: &Slapd) -> (World, String) {
    for uid in ["ann", "bob"] {
        slapd.add_user(uid).await;
    }
    let group = vec![
        ("objectClass".to_owned(), one("groupOfNames")),
        ("cn".to_owned(), one("ops")),
        ("member".to_owned(), one(user_dn("ann"))),
    ];
    slapd.root().await.add(&group_dn("ops"), group).await.unwrap().success().unwrap();
    let world = World::new().await;
    let domain = world.make_id("domain", json!({"name": "corp"})).await;
    configure(&world, &domain, &slapd.url(), json!({})).await;
    (world, domain)
}

#[tokio::test]
async fn users_of_a_directory_log_in_with_its_passwords_and_have_what_its_groups_have() {
    let slapd = Slapd::new().await;
    let (world, domain) = corp(&slapd).await;
    // Nothing was read yet: the login itself brings the account.
    let answer = login(&world, "ann", "secret-of-ann").await.expect(201);
    let ann = answer.text_at("/token/user/id");
    let expected = format!("{domain}userid-ann");
    use sha2::Digest as _;
    assert_eq!(ann, hex::encode(sha2::Sha256::digest(expected)), "the id Keystone gives");
    for (name, password) in [
        ("ann", "wrong"),
        ("ann", ""),
        ("bob", "secret-of-ann"),
        ("nobody", "secret-of-ann"),
        ("*", "secret-of-ann"),
        ("ann)(uid=*", "secret-of-ann"),
    ] {
        login(&world, name, password).await.expect(401);
    }
    let shown = world.admin.get(&format!("/v3/users/{ann}")).await.expect(200);
    assert_eq!(
        (shown.text_at("/user/name"), shown.text_at("/user/email")),
        ("ann".into(), "ann@test".into())
    );
    assert_eq!(names(&world, &format!("/v3/users/{ann}/groups"), "groups").await, ["ops"]);

    // All of it, without a login.
    world.state.read_directories().await.unwrap();
    assert_eq!(names(&world, &format!("/v3/users?domain_id={domain}"), "users").await, ["ann", "bob"]);
    let groups = world.admin.get(&format!("/v3/groups?domain_id={domain}")).await.expect(200);
    let ops = groups.text_at("/groups/0/id");

    // A role of the group is a role of its members, until they leave it.
    let project = world.make_id("project", json!({"name": "p", "domain_id": domain})).await;
    let member = world.role("member").await;
    world
        .admin
        .put(&format!("/v3/projects/{project}/groups/{ops}/roles/{member}"), json!({}))
        .await
        .expect(204);
    let scoped = |who: &'static str| {
        let (world, project) = (&world, &project);
        async move {
            let user =
                json!({"name": who, "domain": {"name": "corp"}, "password": format!("secret-of-{who}")});
            let identity = json!({"methods": ["password"], "password": {"user": user}});
            world.auth(identity, Some(json!({"project": {"id": project}}))).await
        }
    };
    let token = scoped("ann").await.expect(201).header("x-subject-token").to_owned();
    assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    scoped("bob").await.expect(401);
    slapd.change(&group_dn("ops"), Mod::Replace("member".into(), one(user_dn("bob")))).await;
    world.state.read_directories().await.unwrap();
    assert_eq!(world.roles_of(&token).await, [] as [&str; 0]);
    assert_eq!(world.validate(&token).await.status, 404);
    scoped("bob").await.expect(201);

    // What is mirrored is changed in the directory only.
    let user = format!("/v3/users/{ann}");
    let new = json!({"user": {"name": "new", "domain_id": domain, "password": "p"}});
    world.admin.post("/v3/users", new).await.expect(403);
    world.admin.post("/v3/groups", json!({"group": {"name": "new", "domain_id": domain}})).await.expect(403);
    world.admin.patch(&user, json!({"user": {"password": "mine"}})).await.expect(403);
    world.admin.patch(&user, json!({"user": {"enabled": false}})).await.expect(403);
    world.admin.delete(&user).await.expect(403);
    world.admin.put(&format!("/v3/groups/{ops}/users/{ann}"), json!({})).await.expect(403);
    world.admin.delete(&format!("/v3/groups/{ops}")).await.expect(403);
    let change = json!({"user": {"original_password": "secret-of-ann", "password": "mine"}});
    world.anyone.post(&format!("{user}/password"), change).await.expect(401);
    let dump = world.dump().await;
    assert!(!dump.contains("root-password") && !dump.contains("secret-of-ann"));
}

#[tokio::test]
async fn who_is_disabled_or_gone_in_the_directory_is_out_and_may_come_back() {
    let mut slapd = Slapd::new().await;
    let (world, domain) = corp(&slapd).await;
    let token = login(&world, "ann", "secret-of-ann").await.expect(201).header("x-subject-token").to_owned();
    let ann = world.validate(&token).await.text_at("/token/user/id");
    slapd.change(&user_dn("ann"), Mod::Replace("employeeType".into(), one("FALSE"))).await;
    login(&world, "ann", "secret-of-ann").await.expect(401);
    world.state.read_directories().await.unwrap();
    assert_eq!(world.validate(&token).await.status, 404, "its tokens end");
    slapd.change(&user_dn("ann"), Mod::Replace("employeeType".into(), one("TRUE"))).await;
    let token = login(&world, "ann", "secret-of-ann").await.expect(201).header("x-subject-token").to_owned();

    slapd.root().await.delete(&user_dn("ann")).await.unwrap().success().unwrap();
    login(&world, "ann", "secret-of-ann").await.expect(401);
    world.state.read_directories().await.unwrap();
    assert_eq!(world.validate(&token).await.status, 404);
    let shown = world.admin.get(&format!("/v3/users/{ann}")).await.expect(200);
    assert_eq!(shown.at("/user/enabled"), false, "kept, with its grants");
    slapd.add_user("ann").await;
    let again = login(&world, "ann", "secret-of-ann").await.expect(201);
    assert_eq!(again.text_at("/token/user/id"), ann);

    // A filter that shows nobody disables nobody.
    configure(&world, &domain, &slapd.url(), json!({"user_filter": "(uid=none*)"})).await;
    world.state.read_directories().await.unwrap();
    assert_eq!(world.admin.get(&format!("/v3/users/{ann}")).await.at("/user/enabled"), true);
    configure(&world, &domain, &slapd.url(), json!({})).await;

    // The directory is away: that is said, and others are not concerned.
    slapd.stop();
    login(&world, "ann", "secret-of-ann").await.expect(503);
    world.login("demo", &crate::world::password_of("demo"), None).await.expect(201);
    world.state.read_directories().await.unwrap();
    slapd.start().await;
    login(&world, "ann", "secret-of-ann").await.expect(201);

    // Without its directory nobody of it gets in, not by an empty password either.
    world.admin.delete(&format!("/v3/domains/{domain}/config")).await.expect(204);
    for password in ["secret-of-ann", ""] {
        login(&world, "ann", password).await.expect(401);
    }
}

#[tokio::test]
async fn accounts_that_are_there_keep_their_names() {
    let slapd = Slapd::new().await;
    for uid in ["ann", "bob"] {
        slapd.add_user(uid).await;
    }
    let world = World::new().await;
    let domain = world.make_id("domain", json!({"name": "corp"})).await;
    let local = json!({"name": "ann", "domain_id": domain, "password": "local"});
    let local = world.make_id("user", local).await;
    configure(&world, &domain, &slapd.url(), json!({"page_size": 1})).await;
    world.state.read_directories().await.unwrap();
    assert_eq!(names(&world, &format!("/v3/users?domain_id={domain}"), "users").await, ["ann", "bob"]);
    assert_eq!(login(&world, "ann", "local").await.expect(201).text_at("/token/user/id"), local);
    login(&world, "ann", "secret-of-ann").await.expect(401);
    // By id, too.
    let bob = login(&world, "bob", "secret-of-bob").await.expect(201).text_at("/token/user/id");
    let by_id = |password: &str| {
        let identity =
            json!({"methods": ["password"], "password": {"user": {"id": bob, "password": password}}});
        world.auth(identity, None)
    };
    by_id("secret-of-bob").await.expect(201);
    by_id("wrong").await.expect(401);
}

#[tokio::test]
async fn two_who_exchange_names_keep_their_accounts() {
    let slapd = Slapd::new().await;
    let (world, domain) = corp(&slapd).await;
    world.state.read_directories().await.unwrap();
    let id = async |name: &str, password: &str| {
        login(&world, name, password).await.expect(201).text_at("/token/user/id")
    };
    let (ann, bob) = (id("ann", "secret-of-ann").await, id("bob", "secret-of-bob").await);
    for (who, name) in [("ann", "bob"), ("bob", "ann")] {
        slapd.change(&user_dn(who), Mod::Replace("uid".into(), one(name))).await;
    }
    world.state.read_directories().await.unwrap();
    assert_eq!(names(&world, &format!("/v3/users?domain_id={domain}"), "users").await, ["ann", "bob"]);
    assert_eq!(id("bob", "secret-of-ann").await, ann);
    assert_eq!(id("ann", "secret-of-bob").await, bob);
    // Of two with one name, who had it keeps it.
    slapd.change(&user_dn("bob"), Mod::Replace("uid".into(), one("bob"))).await;
    world.state.read_directories().await.unwrap();
    assert_eq!(names(&world, &format!("/v3/users?domain_id={domain}"), "users").await, ["ann", "bob"]);
}

#[tokio::test]
async fn over_tls_the_named_authority_is_trusted_and_no_other() {
    let slapd = Slapd::new().await;
    let (world, domain) = corp(&slapd).await;
    let own = slapd.dir.path().join("cert.pem");
    let strange = slapd.dir.path().join("strange.pem");
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&strange, other.cert.pem()).unwrap();
    for (url, start_tls) in [(slapd.tls_url(), false), (slapd.url(), true)] {
        for (authority, answer) in [(&own, 201), (&strange, 503)] {
            let tls = json!({"use_tls": start_tls, "tls_cacertfile": authority.display().to_string()});
            configure(&world, &domain, &url, tls).await;
            let said = login(&world, "ann", "secret-of-ann").await;
            assert_eq!(said.status, answer, "{url} {authority:?}: {}", said.text());
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_silent_holds_a_few_logins_and_no_more() {
    const MOST: usize = 16;
    let world = std::sync::Arc::new(World::new().await);
    let domain = world.make_id("domain", json!({"name": "corp"})).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    configure(&world, &domain, &format!("ldap://{}", listener.local_addr().unwrap()), json!({})).await;
    let logins: Vec<_> = (0..MOST + 4)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move { login(&world, &format!("user-{n}"), "secret").await.status })
        })
        .collect();
    let mut held = Vec::new();
    for _ in 0..MOST {
        held.push(listener.accept().await.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(more.is_err(), "one more is at the directory");
    // Who waited comes when others have gone.
    drop(held);
    for _ in 0..4 {
        listener.accept().await.unwrap();
    }
    for login in logins {
        assert_eq!(login.await.unwrap(), 503);
    }
}
