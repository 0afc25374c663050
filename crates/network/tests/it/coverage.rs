//! Every operation: with success, without token, by a foreign tenant, with malformed input.

use serde_json::{Value, json};

use crate::world::{Wishes, World, world};

/// Calls every operation on one thing as its owner and as a foreign tenant.
struct Thing {
    path: &'static str,
    one: &'static str,
    create: Value,
    update: Option<Value>,
    /// Who owns it.
    token: &'static str,
}

async fn walk(w: &World, thing: &Thing) -> String {
    let own = w.client().with_token(thing.token);
    let root = format!("/v2.0/{}", thing.path);
    let made = own.post(&root, json!({thing.one: thing.create})).await.expect(201);
    let id = made.text_at(&format!("/{}/id", thing.one));
    let path = format!("{root}/{id}");
    own.get(&root).await.expect(200);
    own.get(&path).await.expect(200);
    let foreign = w.foreign();
    foreign.get(&path).await;
    if let Some(update) = &thing.update {
        own.put(&path, json!({thing.one: update})).await.expect(200);
        let answer = foreign.put(&path, json!({thing.one: update})).await;
        assert!(answer.status == 404 || answer.status == 403, "{path}: {}", answer.text());
    }
    let answer = foreign.delete(&path).await;
    assert!(answer.status == 404 || answer.status == 403, "{path}: {}", answer.text());
    id
}

async fn walk_tags(w: &World, kind: &str, id: &str) {
    let (own, foreign) = (w.own(), w.foreign());
    let root = format!("/v2.0/{kind}/{id}/tags");
    let tags = json!({"tags": ["a"]});
    own.post(&root, tags.clone()).await.expect(201);
    own.put(&root, tags.clone()).await.expect(200);
    own.get(&root).await.expect(200);
    let one = format!("{root}/b");
    own.put(&one, json!({})).await.expect(201);
    own.get(&one).await.expect(204);
    foreign.post(&root, tags.clone()).await.expect(404);
    foreign.put(&root, tags).await.expect(404);
    foreign.get(&root).await.expect(404);
    foreign.delete(&root).await.expect(404);
    foreign.put(&one, json!({})).await.expect(404);
    foreign.get(&one).await.expect(404);
    foreign.delete(&one).await.expect(404);
    own.delete(&one).await.expect(204);
    own.delete(&root).await.expect(204);
}

async fn walk_all(w: &World) {
    let (own, admin, foreign) = (w.own(), w.admin(), w.foreign());
    let thing = |path, one, create, update| Thing { path, one, create, update, token: "member:p1" };
    let name = || Some(json!({"name": "x"}));
    let net = walk(w, &thing("networks", "network", json!({"name": "n"}), name())).await;
    let subnet = json!({"network_id": net, "cidr": "10.0.0.0/24", "ip_version": 4});
    let subnet = walk(w, &thing("subnets", "subnet", subnet, name())).await;
    let pool = json!({"name": "p", "prefixes": ["10.8.0.0/16"], "default_prefixlen": 24});
    let pool = walk(w, &thing("subnetpools", "subnetpool", pool, name())).await;
    let group = walk(w, &thing("security-groups", "security_group", json!({"name": "g"}), name())).await;
    let rule = json!({"security_group_id": group, "direction": "ingress"});
    let rule = walk(w, &thing("security-group-rules", "security_group_rule", rule, None)).await;
    let port = walk(w, &thing("ports", "port", json!({"network_id": net}), name())).await;
    let router = walk(
        w,
        &thing("routers", "router", json!({"external_gateway_info": {"network_id": w.public}}), name()),
    )
    .await;
    let path = format!("/v2.0/routers/{router}");
    for (verb, body) in [
        ("add_router_interface", json!({"subnet_id": subnet})),
        (
            "add_extraroutes",
            json!({"router": {"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]}}),
        ),
        (
            "remove_extraroutes",
            json!({"router": {"routes": [{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}]}}),
        ),
    ] {
        own.put(&format!("{path}/{verb}"), body.clone()).await.expect(200);
        foreign.put(&format!("{path}/{verb}"), body).await.expect(404);
    }
    let fip = json!({"floating_network_id": w.public, "port_id": port});
    let fip = walk(w, &thing("floatingips", "floatingip", fip, Some(json!({"port_id": null})))).await;
    for (kind, id) in [
        ("networks", &net),
        ("subnets", &subnet),
        ("subnetpools", &pool),
        ("ports", &port),
        ("routers", &router),
        ("floatingips", &fip),
        ("security-groups", &group),
    ] {
        walk_tags(w, kind, id).await;
    }
    let admins = |path, one, create, update| Thing { path, one, create, update, token: "admin" };
    let policy = json!({"object_type": "network", "object_id": net, "action": "access_as_shared", "target_tenant": "p3"});
    let policy =
        walk(w, &admins("rbac-policies", "rbac_policy", policy, Some(json!({"target_tenant": "p4"})))).await;
    let template = json!({"direction": "ingress", "protocol": "icmp"});
    let template =
        walk(w, &admins("default-security-group-rules", "default_security_group_rule", template, None)).await;
    admin.delete(&format!("/v2.0/default-security-group-rules/{template}")).await.expect(204);
    admin.delete(&format!("/v2.0/rbac-policies/{policy}")).await.expect(204);
    let body = json!({"subnet_id": subnet});
    foreign.put(&format!("{path}/remove_router_interface"), body.clone()).await.expect(404);
    own.put(&format!("{path}/remove_router_interface"), body).await.expect(200);
    for path in [
        format!("/v2.0/floatingips/{fip}"),
        path,
        format!("/v2.0/ports/{port}"),
        format!("/v2.0/security-group-rules/{rule}"),
        format!("/v2.0/security-groups/{group}"),
        format!("/v2.0/subnetpools/{pool}"),
    ] {
        own.delete(&path).await.expect(204);
        own.get(&path).await.expect(404);
    }
    for path in ["", "/"] {
        w.client().get(&format!("/{path}")).await;
        own.get(&format!("/v2.0{path}")).await.expect(200);
    }
    admin.get(&format!("/v2.0/network-ip-availabilities/{net}")).await.expect(200);
    admin.get("/v2.0/network-ip-availabilities").await.expect(200);
    foreign.get(&format!("/v2.0/network-ip-availabilities/{net}")).await.expect(403);
    own.delete(&format!("/v2.0/subnets/{subnet}")).await.expect(204);
    own.delete(&format!("/v2.0/networks/{net}")).await.expect(204);
}

async fn walk_rest(w: &World) {
    let (own, admin, foreign) = (w.own(), w.admin(), w.foreign());
    w.client().get("/").await.expect(200);
    for path in
        ["/v2.0/extensions", "/v2.0/extensions/router", "/v2.0/availability_zones", "/v2.0/service-providers"]
    {
        own.get(path).await.expect(200);
    }
    own.get("/v2.0/extensions/nonsense").await.expect(404);
    let agents = admin.get("/v2.0/agents").await.expect(200);
    let agent = format!("/v2.0/agents/{}", agents.text_at("/agents/0/id"));
    admin.get(&agent).await.expect(200);
    foreign.get(&agent).await.expect(404);
    own.get("/v2.0/quotas/p1").await.expect(200);
    for end in ["", "/default", "/details", "/details.json"] {
        own.get(&format!("/v2.0/quotas/p1{end}")).await.expect(200);
        foreign.get(&format!("/v2.0/quotas/p1{end}")).await.expect(403);
    }
    own.put("/v2.0/quotas/p1", json!({"quota": {"port": 5}})).await.expect(403);
    foreign.put("/v2.0/quotas/p1", json!({"quota": {"port": 5}})).await.expect(403);
    foreign.delete("/v2.0/quotas/p1").await.expect(403);
    let set = admin.put("/v2.0/quotas/p1", json!({"quota": {"port": 5, "network": "7"}})).await.expect(200);
    assert_eq!((set.at("/quota/port"), set.at("/quota/network")), (json!(5), json!(7)));
    own.network("one").await;
    let checked = json!({"quota": {"network": 0, "check_limit": true}});
    admin.put("/v2.0/quotas/p1", checked).await.expect(400);
    admin.put("/v2.0/quotas/p1", json!({"quota": {"network": true}})).await.expect(400);
    admin.get("/v2.0/quotas").await.expect(200);
    let details = own.get("/v2.0/quotas/p1/details.json").await.expect(200);
    assert_eq!(details.at("/quota/port"), json!({"limit": 5, "used": 0, "reserved": 0}));
    admin.delete("/v2.0/quotas/p1").await.expect(204);
    admin.delete("/v2.0/quotas/p1").await.expect(404);
}

#[tokio::test]
async fn every_operation_is_accounted_for() {
    let mut w = world().await;
    walk_all(&w).await;
    walk_rest(&w).await;
    let net = w.own().network("watched").await;
    let samples = [
        ("POST /v2.0/networks", json!({"network": {"name": "n", "mtu": 1400, "admin_state_up": true}})),
        (
            "POST /v2.0/subnets",
            json!({"subnet": {"network_id": net, "cidr": "10.0.0.0/24", "ip_version": 4}}),
        ),
        ("POST /v2.0/ports", json!({"port": {"network_id": net, "name": "p", "fixed_ips": []}})),
        ("POST /v2.0/routers", json!({"router": {"name": "r"}})),
        ("POST /v2.0/security-groups", json!({"security_group": {"name": "g"}})),
        ("POST /v2.0/floatingips", json!({"floatingip": {"floating_network_id": w.public}})),
    ];
    for (op, body) in samples {
        w.suite.sample(op, body);
    }
    for op in network::ops() {
        let info = op.info();
        if info.path.contains("/v2.0/quotas/") {
            w.suite.excuse_path(&info.id, "any text can be a project's id");
        }
        if info.path.contains("default-security-group-rules/") && info.method == api::Method::GET {
            w.suite.excuse_foreign(&info.id, "the template is everybody's");
        }
        if info.path.contains("extensions/") {
            w.suite.excuse_foreign(&info.id, "extensions are everybody's");
        }
    }
    w.suite.paged(&[
        "GET /v2.0/networks",
        "GET /v2.0/subnets",
        "GET /v2.0/ports",
        "GET /v2.0/routers",
        "GET /v2.0/floatingips",
        "GET /v2.0/security-groups",
        "GET /v2.0/security-group-rules",
    ]);
    for path in ["/v2.0/networks", "/v2.0/subnets", "/v2.0/ports", "/v2.0/routers", "/v2.0/security-groups"] {
        w.suite.watch("admin", path);
    }
    w.suite.check().await.assert_complete();
}
