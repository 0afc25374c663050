//! The whole policy as a table: every operation × every role × every scope, compared with `matrix.txt`, so that a change
//! of anybody's rights is a change of a line that somebody reviews. `ALLOD_BLESS=1 cargo nextest run -p identity matrix`
//! writes the table anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::testing::Client;
use api::{Method, OpInfo, TokenNeed};
use identity::Place;
use serde_json::{Value, json};

use crate::world::{World, password_of};

pub const TABLE: &str = include_str!("matrix.txt");
const ROLES: [&str; 4] = ["admin", "manager", "member", "reader"];
const SCOPES: [&str; 5] = ["own project", "own domain", "foreign project", "foreign domain", "system"];
pub const NOBODY: &str = "0123456789abcdef0123456789abcdef";

/// What the operations are tried on: all of it in the domain `own`, belonging to the user `owner`.
pub struct Things {
    pub ids: BTreeMap<&'static str, String>,
    pub owner: Client,
}

impl Things {
    pub fn id(&self, name: &str) -> &str {
        self.ids.get(name).map_or(NOBODY, String::as_str)
    }
}

/// Makes a thing of each kind. `n` keeps names apart.
pub async fn things(world: &World, domain: &str, project: &str, n: usize) -> Things {
    let admin = &world.admin;
    let make = |path: &'static str, key: &'static str, body: Value| async move {
        let answer = admin.post(path, body).await.expect(201);
        answer.text_at(&format!("/{key}/id"))
    };
    let name = format!("thing-{n}");
    let owner =
        make("/v3/users", "user", json!({"user": {"name": name, "domain_id": domain, "password": "p"}}))
            .await;
    let member = world.role("member").await;
    let grant = format!("/v3/projects/{project}/users/{owner}/roles/{member}");
    admin.put(&grant, json!({})).await.expect(204);
    let login = json!({"methods": ["password"], "password": {"user": {"id": owner, "password": "p"}}});
    let scope = json!({"project": {"id": project}});
    let token = world.auth(login, Some(scope)).await.expect(201).header("x-subject-token").to_owned();
    let mine = world.anyone.with_token(&token);
    let own = |path: String, key: &'static str, body: Value| {
        let mine = mine.clone();
        async move { mine.post(&path, body).await.expect(201).at(&format!("/{key}")) }
    };
    let rule = json!({"service": "compute", "method": "GET", "path": format!("/{n}")});
    let credentials = format!("/v3/users/{owner}/application_credentials");
    let body = json!({"application_credential": {"name": "a", "access_rules": [rule]}});
    let by_rule = own(credentials.clone(), "application_credential", body).await;
    let rule = by_rule["access_rules"][0]["id"].as_str().unwrap().to_owned();
    mine.delete(&format!("{credentials}/{}", by_rule["id"].as_str().unwrap())).await.expect(204);
    let application =
        own(credentials, "application_credential", json!({"application_credential": {"name": "b"}})).await;
    let keys =
        own(format!("/v3/users/{owner}/credentials/OS-EC2"), "credential", json!({"tenant_id": project}))
            .await;
    let cert = json!({"credential": {"type": "cert", "blob": "b", "user_id": owner}});
    let cert = own("/v3/credentials".into(), "credential", cert).await;
    let trust = json!({"trust": {
        "trustor_user_id": owner, "trustee_user_id": world.demo, "project_id": project, "impersonation": false,
        "roles": [{"name": "member"}]}});
    let trust = own("/v3/OS-TRUST/trusts".into(), "trust", trust).await;
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let group = make("/v3/groups", "group", json!({"group": {"name": name, "domain_id": domain}})).await;
    admin.put(&format!("/v3/groups/{group}/users/{owner}"), json!({})).await.expect(204);
    let role = make("/v3/roles", "role", json!({"role": {"name": format!("{name}-a")}})).await;
    let implied = make("/v3/roles", "role", json!({"role": {"name": format!("{name}-b")}})).await;
    admin.put(&format!("/v3/roles/{role}/implies/{implied}"), json!({})).await.expect(201);
    let service = make("/v3/services", "service", json!({"service": {"type": name}})).await;
    let endpoint = json!({"endpoint": {"service_id": service, "interface": "public", "url": "http://e"}});
    let endpoint = make("/v3/endpoints", "endpoint", endpoint).await;
    let region = make("/v3/regions", "region", json!({"region": {"id": name}})).await;
    let limit = json!({"service_id": service, "resource_name": "kept", "default_limit": 5});
    let free = json!({"service_id": service, "resource_name": "free", "default_limit": 5});
    let body = json!({"registered_limits": [free, limit]});
    let registered = make("/v3/registered_limits", "registered_limits/0", body).await;
    let limit =
        json!({"service_id": service, "resource_name": "kept", "resource_limit": 3, "project_id": project});
    let limit = make("/v3/limits", "limits/0", json!({"limits": [limit]})).await;
    let policy = make("/v3/policies", "policy", json!({"policy": {"type": "t", "blob": "{}"}})).await;
    for tail in [
        format!("endpoints/{endpoint}"),
        format!("services/{service}"),
        format!("services/{service}/regions/{region}"),
    ] {
        admin.put(&format!("/v3/policies/{policy}/OS-ENDPOINT-POLICY/{tail}"), json!({})).await.expect(204);
    }
    let filter = json!({"endpoint_group": {"name": "g", "filters": {"interface": "public"}}});
    let filter = make("/v3/OS-EP-FILTER/endpoint_groups", "endpoint_group", filter).await;
    let consumer = make("/v3/OS-OAUTH1/consumers", "consumer", json!({"consumer": {}})).await;
    let boss = crate::oauth1::admit(world, project, "member").await;
    let (program, access) = crate::oauth1::given(world, admin, &world.anyone, project, &["member"]).await;
    let asked = program.ask(project).await;
    let config = json!({"config": {"ldap": {"url": "u"}}});
    admin.put(&format!("/v3/domains/{domain}/config"), config).await;
    let spare = make(
        "/v3/projects",
        "project",
        json!({"project": {"name": name, "domain_id": domain, "tags": ["t"]}}),
    )
    .await;
    let ids = [
        ("user_id", owner),
        ("group_id", group),
        ("spare_project", spare),
        ("project_id", project.to_owned()),
        ("domain_id", domain.to_owned()),
        ("member", member),
        ("role_id", role.clone()),
        ("prior_role_id", role),
        ("implied_role_id", implied),
        ("service_id", service),
        ("endpoint_id", endpoint),
        ("region_id", region),
        ("registered_limit_id", registered),
        ("limit_id", limit),
        ("policy_id", policy),
        ("endpoint_group_id", filter),
        ("consumer_id", consumer),
        ("boss", boss),
        ("request_token_id", asked.key),
        ("access_token_id", access.key),
        ("application_credential_id", text(&application, "id")),
        ("access_rule_id", rule),
        ("access", text(&keys, "access")),
        ("credential_id", text(&cert, "id")),
        ("trust_id", text(&trust, "id")),
        ("tag", "t".to_owned()),
        ("group", "ldap".to_owned()),
        ("option", "url".to_owned()),
        ("subject_token", token),
    ];
    Things { ids: ids.into_iter().collect(), owner: mine }
}

/// The path of an operation with the things' ids.
fn path_of(op: &OpInfo, things: &Things) -> String {
    let mut path = String::new();
    for part in op.path.split('/').skip(1) {
        path.push('/');
        match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            None => path.push_str(part),
            // Grants are tried with a role a manager may give, other things with one of their own.
            Some("role_id") if op.path.contains("/users/") || op.path.contains("/groups/") => {
                path.push_str(things.id("member"));
            }
            // Only an administrator says yes to a program.
            Some("user_id") if op.path.contains("OS-OAUTH1") => path.push_str(things.id("boss")),
            Some("role_id") if op.path.contains("OS-TRUST") => path.push_str(things.id("member")),
            Some("credential_id") if op.path.contains("OS-EC2") => path.push_str(things.id("access")),
            Some("project_id")
                if op.path.starts_with("/v3/projects/{project_id}") && !op.path.contains("roles") =>
            {
                path.push_str(things.id("spare_project"));
            }
            Some(name) => path.push_str(things.id(name)),
        }
    }
    path
}

/// A body the operation takes. `n` keeps names apart.
pub fn body_of(op: &OpInfo, things: &Things, n: usize) -> Value {
    let name = format!("made-{n}");
    let id = |name: &str| things.id(name).to_owned();
    let described = |key: &str| json!({key: {"description": "d"}});
    let limit = |most: &str| json!({"service_id": id("service_id"), "resource_name": name, most: 1});
    match (op.method.as_str(), op.path.as_ref()) {
        ("POST", "/v3/users") => json!({"user": {"name": name, "domain_id": id("domain_id")}}),
        ("POST", "/v3/groups") => json!({"group": {"name": name, "domain_id": id("domain_id")}}),
        ("POST", "/v3/projects") => json!({"project": {"name": name, "domain_id": id("domain_id")}}),
        ("POST", "/v3/domains") => json!({"domain": {"name": name}}),
        ("POST", "/v3/roles") => json!({"role": {"name": name}}),
        ("POST", "/v3/services") => json!({"service": {"type": name}}),
        ("POST", "/v3/regions") | ("PUT", "/v3/regions/{region_id}") => json!({"region": {}}),
        ("POST", "/v3/endpoints") => {
            json!({"endpoint": {"service_id": id("service_id"), "interface": "public", "url": "http://h"}})
        }
        ("PATCH", "/v3/endpoints/{endpoint_id}") => json!({"endpoint": {"url": "http://i"}}),
        ("PUT", "/v3/projects/{project_id}/tags") => json!({"tags": ["t"]}),
        ("POST", "/v3/users/{user_id}/application_credentials") => {
            json!({"application_credential": {"name": name}})
        }
        ("POST", "/v3/OS-TRUST/trusts") => json!({"trust": {
            "trustor_user_id": id("user_id"), "trustee_user_id": NOBODY, "impersonation": false}}),
        ("POST", "/v3/credentials") => {
            json!({"credential": {"type": "cert", "blob": "b", "user_id": id("user_id")}})
        }
        ("PATCH", "/v3/credentials/{credential_id}") => json!({"credential": {"blob": "c"}}),
        ("POST", "/v3/users/{user_id}/credentials/OS-EC2") => json!({"tenant_id": id("project_id")}),
        ("POST", "/v3/ec2tokens" | "/v3/s3tokens") => {
            json!({"credentials": {"access": NOBODY, "signature": "s", "token": ""}})
        }
        ("POST", "/v3/registered_limits") => json!({"registered_limits": [limit("default_limit")]}),
        ("POST", "/v3/limits") => {
            let mut one = limit("resource_limit");
            one["project_id"] = json!(id("project_id"));
            one["resource_name"] = json!("free");
            json!({"limits": [one]})
        }
        ("PATCH", "/v3/limits/{limit_id}") => json!({"limit": {"resource_limit": 2}}),
        ("PATCH", "/v3/registered_limits/{registered_limit_id}") => {
            json!({"registered_limit": {"default_limit": 9}})
        }
        ("POST", "/v3/policies") => json!({"policy": {"type": "t", "blob": "b"}}),
        ("PATCH", "/v3/policies/{policy_id}") => json!({"policy": {"type": "u"}}),
        ("POST", "/v3/OS-EP-FILTER/endpoint_groups") => {
            json!({"endpoint_group": {"name": name, "filters": {"interface": "admin"}}})
        }
        ("POST", "/v3/OS-OAUTH1/consumers") => described("consumer"),
        ("PUT", "/v3/OS-OAUTH1/authorize/{request_token_id}") => json!({"roles": [{"name": "member"}]}),
        ("PUT" | "PATCH", "/v3/domains/{domain_id}/config") => json!({"config": {"ldap": {"url": "v"}}}),
        ("PATCH", "/v3/domains/{domain_id}/config/{group}") => json!({"config": {"ldap": {"url": "v"}}}),
        ("PATCH", "/v3/domains/{domain_id}/config/{group}/{option}") => json!({"config": {"url": "v"}}),
        ("PATCH", path) => {
            let kind = path.rsplit('/').nth(1).unwrap_or_default();
            described(kind.strip_suffix('s').unwrap_or(kind))
        }
        _ => json!({}),
    }
}

pub fn operations() -> Vec<OpInfo> {
    let all = identity::ops();
    all.iter().map(|op| op.info().clone()).filter(|op| op.token == TokenNeed::Required).collect()
}

pub struct Place2 {
    pub domain: String,
    pub project: String,
}

pub async fn place(world: &World, name: &str) -> Place2 {
    let domain = world.make_id("domain", json!({"name": name})).await;
    let project = world.make_id("project", json!({"name": name, "domain_id": domain})).await;
    Place2 { domain, project }
}

/// A client with one role on one scope; the user is of the default domain.
async fn persona(world: &World, role: &str, scope: &str, own: &Place2, foreign: &Place2) -> Client {
    let name = format!("{role} {scope}");
    let user = world.state.ensure_user(&name, &password_of(&name), None).await.unwrap();
    let at = if scope.starts_with("own") { own } else { foreign };
    let project = || Place::Project(base::ProjectId::new(at.project.as_str()));
    let (place, wanted) = match scope.rsplit(' ').next().unwrap() {
        "project" => (project(), json!({"project": {"id": at.project}})),
        "domain" => {
            (Place::Domain(base::DomainId::new(at.domain.as_str())), json!({"domain": {"id": at.domain}}))
        }
        _ => (Place::System, json!({"system": {"all": true}})),
    };
    world.state.ensure_assignment(&user, role, &place).await.unwrap();
    world.anyone.with_token(&world.token(&name, wanted).await)
}

async fn call(client: &Client, op: &OpInfo, things: &Things, n: usize) -> u16 {
    let client = client.with_header("x-subject-token", things.id("subject_token"));
    let mut call = client.call(op.method.clone(), &path_of(op, things));
    if matches!(op.body, api::BodyKind::Json) {
        call = call.json(&body_of(op, things, n));
    }
    call.send().await.status
}

/// `y` done, `n` refused, `4` found wanting for another reason (a thing that is not there, a conflict).
fn letter(status: u16) -> char {
    match status {
        200..300 => 'y',
        401 | 403 => 'n',
        400..500 => '4',
        _ => '!',
    }
}

#[tokio::test]
async fn the_policy_is_as_written() {
    let world = World::new().await;
    let (own, foreign) = (place(&world, "own").await, place(&world, "foreign").await);
    let mut clients = Vec::new();
    for scope in SCOPES {
        for role in ROLES {
            clients.push(persona(&world, role, scope, &own, &foreign).await);
        }
    }
    let mut table = String::from(
        "# y = done, n = refused, 4 = allowed but not possible. Columns: own project, own domain, foreign project, foreign\n# domain, system; in each: admin, manager, member, reader. Last: the user whose the thing is.\n",
    );
    let mut count = 0;
    let mut on = things(&world, &own.domain, &own.project, 0).await;
    let mut tried = 0;
    for op in operations() {
        let mut line = format!("{:<110}", op.id);
        for (n, group) in (0..=clients.len()).collect::<Vec<_>>().chunks(ROLES.len()).enumerate() {
            if n > 0 {
                line.push(' ');
            }
            for at in group {
                let owner = on.owner.clone();
                let client = clients.get(*at).unwrap_or(&owner);
                tried += 1;
                let status = call(client, &op, &on, tried).await;
                line.push(letter(status));
                // What a success took away is put back.
                let took = op.method == Method::DELETE || op.id.starts_with("PUT /v3/OS-EP-FILTER");
                let loses = op.id.starts_with("PATCH /v3/users") || op.id == "POST /v3/registered_limits";
                if status < 300 && (took || loses) {
                    count += 1;
                    on = things(&world, &own.domain, &own.project, count).await;
                }
            }
        }
        writeln!(table, "{}", line.trim_end()).unwrap();
    }
    assert!(!table.contains('!'), "{table}");
    if std::env::var("ALLOD_BLESS").is_ok() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/matrix.txt"), &table).unwrap();
        return;
    }
    let differ: Vec<String> = table
        .lines()
        .zip(TABLE.lines().chain(std::iter::repeat("")))
        .filter(|(now, written)| now != written)
        .map(|(now, written)| format!("now     {now}\nwritten {written}"))
        .collect();
    assert!(differ.is_empty() && table.lines().count() == TABLE.lines().count(), "{}", differ.join("\n"));
    println!("{tried} cases");
}
