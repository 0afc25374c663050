//! Who may see and do what, and in which words it is refused.

use serde_json::{Value, json};

use crate::world::{Wishes, world};

#[tokio::test]
async fn administrators_attributes() {
    let w = world().await;
    let own = w.own();
    for body in [
        json!({"shared": true}),
        json!({"router:external": true}),
        json!({"is_default": true}),
        json!({"provider:network_type": "flat", "provider:physical_network": "physnet1"}),
        json!({"provider:segmentation_id": 5}),
    ] {
        let answer = own.post("/v2.0/networks", json!({"network": body})).await.expect(403);
        assert_eq!(answer.text_at("/NeutronError/type"), "PolicyNotAuthorized", "{body}");
    }
    let net = own.network("n").await;
    let shown = own.get(&format!("/v2.0/networks/{net}")).await.expect(200);
    assert_eq!(shown.at("/network/provider:network_type"), Value::Null);
    let admin = w.admin().get(&format!("/v2.0/networks/{net}")).await.expect(200);
    assert_eq!(admin.text_at("/network/provider:network_type"), "geneve");
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    own.port(&net, json!({"binding:host_id": "h"})).await.expect(403);
    own.port(&net, json!({"mac_address": "fa:16:3e:00:00:01"})).await.expect(201);
    let port = w.admin().port(&net, json!({"binding:host_id": "h", "tenant_id": "p1"})).await.expect(201);
    assert_eq!(port.text_at("/port/binding:vif_type"), "ovs");
    let seen = own.get(&format!("/v2.0/ports/{}", port.text_at("/port/id"))).await.expect(200);
    assert_eq!(seen.at("/port/binding:host_id"), Value::Null);
    assert_eq!(seen.text_at("/port/binding:vnic_type"), "normal");
    own.post("/v2.0/networks", json!({"network": {"project_id": "p2"}})).await.expect(400);
    assert_eq!(own.get("/v2.0/agents").await.expect(200).at("/agents"), json!([]));
    let agents = w.admin().get("/v2.0/agents").await.expect(200);
    assert_eq!(agents.text_at("/agents/0/host"), "host-1");
}

#[tokio::test]
async fn readers_read() {
    let w = world().await;
    let net = w.own().network("n").await;
    let reader = w.client().with_token("reader:p1");
    reader.get(&format!("/v2.0/networks/{net}")).await.expect(200);
    reader.post("/v2.0/networks", json!({"network": {}})).await.expect(403);
    reader.put(&format!("/v2.0/networks/{net}"), json!({"network": {"name": "x"}})).await.expect(403);
    reader.delete(&format!("/v2.0/networks/{net}")).await.expect(403);
    reader.get("/v2.0/security-groups").await.expect(200);
    let public = reader.get("/v2.0/networks?router:external=True").await.expect(200);
    assert_eq!(public.text_at("/networks/0/name"), "public");
    assert_eq!(public.at("/networks").as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn shared_networks_are_for_use_not_for_change() {
    let w = world().await;
    let body = json!({"network": {"name": "all", "shared": true}});
    let net = w.admin().post("/v2.0/networks", body).await.expect(201).text_at("/network/id");
    w.admin().subnet(&net, "10.0.0.0/24").await.expect(201);
    let own = w.own();
    let path = format!("/v2.0/networks/{net}");
    assert_eq!(own.get(&path).await.expect(200).at("/network/shared"), json!(true));
    assert_eq!(
        own.get(&format!("/v2.0/subnets?network_id={net}")).await.at("/subnets").as_array().unwrap().len(),
        1
    );
    own.put(&path, json!({"network": {"name": "mine"}})).await.expect(403);
    own.delete(&path).await.expect(403);
    own.subnet(&net, "10.7.0.0/24").await.expect(403);
    let port = own.port(&net, json!({})).await.expect(201).text_at("/port/id");
    own.port(&net, json!({"fixed_ips": [{"ip_address": "10.0.0.9"}]})).await.expect(403);
    own.port(&net, json!({"port_security_enabled": false})).await.expect(403);
    own.port(&net, json!({"device_owner": "network:dhcp"})).await.expect(403);
    w.foreign().get(&format!("/v2.0/ports/{port}")).await.expect(404);
    let answer = w.admin().put(&path, json!({"network": {"shared": false}})).await.expect(409);
    assert_eq!(answer.text_at("/NeutronError/type"), "InvalidSharedSetting");
    own.delete(&format!("/v2.0/ports/{port}")).await.expect(204);
    w.admin().put(&path, json!({"network": {"shared": false}})).await.expect(200);
    own.get(&path).await.expect(404);
    // For one project only.
    let body = json!({"rbac_policy": {"object_type": "network", "object_id": net, "action": "access_as_shared", "target_tenant": "p1"}});
    own.post("/v2.0/rbac-policies", body.clone()).await.expect(403);
    w.admin().post("/v2.0/rbac-policies", body.clone()).await.expect(201);
    let twice = w.admin().post("/v2.0/rbac-policies", body).await.expect(409);
    assert_eq!(twice.text_at("/NeutronError/type"), "DuplicateRbacPolicy");
    own.get(&path).await.expect(200);
    w.foreign().get(&path).await.expect(404);
}

#[tokio::test]
async fn who_owns_a_network_sees_its_ports() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    own.subnet(&net, "10.0.0.0/24").await.expect(201);
    own.router(&w.public).await;
    // Tempest looks for free addresses among the ports it sees.
    let seen = own.get("/v2.0/ports").await.expect(200);
    assert_eq!(seen.at("/ports").as_array().unwrap().len(), 1);
    assert_eq!(seen.text_at("/ports/0/device_owner"), "network:distributed");
    assert_eq!(seen.text_at("/ports/0/fixed_ips/0/ip_address"), "10.0.0.2");
    let path = format!("/v2.0/ports/{}", seen.text_at("/ports/0/id"));
    own.get(&path).await.expect(200);
    own.put(&path, json!({"port": {"fixed_ips": []}})).await.expect(403);
    own.delete(&path).await.expect(409);
    w.foreign().get(&path).await.expect(404);
    let all = w.admin().get("/v2.0/ports?device_owner=network:router_gateway").await.expect(200);
    assert_eq!(all.at("/ports").as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn lists_filter_sort_and_page() {
    let w = world().await;
    let own = w.own();
    for name in ["c", "a", "b", "e", "d"] {
        own.network(name).await;
    }
    let names = |answer: &api::testing::Answer| -> Vec<String> {
        answer
            .at("/networks")
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = own
        .get("/v2.0/networks?sort_key=name&sort_dir=desc&router:external=false&fields=name&fields=id")
        .await
        .expect(200);
    assert_eq!(names(&all), ["e", "d", "c", "b", "a"]);
    assert_eq!(all.at("/networks/0").as_object().unwrap().len(), 2);
    assert_eq!(names(&own.get("/v2.0/networks?name=a&name=b&sort_key=name").await), ["a", "b"]);
    // Page by page along the links, as Tempest does.
    let mut path = "/v2.0/networks?limit=2&sort_key=name&router:external=False".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = own.get(&path).await.expect(200);
        if page.at("/networks") == json!([]) {
            break;
        }
        seen.extend(names(&page));
        let links = page.at("/networks_links");
        let next = links
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["rel"] == "next")
            .map(|l| l["href"].as_str().unwrap().to_owned());
        match next {
            Some(href) => path = href.trim_start_matches("http://cloud.test").to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    for (query, status) in [
        ("?nonsense=1", 400),
        ("?limit=-1", 400),
        ("?sort_key=nonsense", 400),
        ("?admin_state_up=perhaps", 400),
        ("?marker=nobody&limit=1", 404),
        ("?tags=x", 200),
        ("?shared=False", 200),
    ] {
        own.get(&format!("/v2.0/networks{query}")).await.expect(status);
    }
}

#[tokio::test]
async fn revisions_and_tags() {
    let w = world().await;
    let own = w.own();
    let net = own.network("n").await;
    let path = format!("/v2.0/networks/{net}");
    let body = json!({"network": {"name": "m"}});
    let put = |revision: &str| own.call(api::Method::PUT, &path).header("If-Match", revision).json(&body);
    let answer = put("revision_number=99").send().await.expect(412);
    assert_eq!(answer.text_at("/NeutronError/type"), "RevisionNumberConstraintFailed");
    put("nonsense").send().await.expect(400);
    let set = put("revision_number=1").send().await.expect(200);
    assert_eq!(set.at("/network/revision_number"), json!(2));
    own.put(&format!("{path}/tags"), json!({"tags": ["red", "blue"]})).await.expect(200);
    own.put(&format!("{path}/tags/green"), json!({})).await.expect(201);
    own.get(&format!("{path}/tags/green")).await.expect(204);
    own.get(&format!("{path}/tags/none")).await.expect(404);
    for (query, found) in [
        ("tags=red,blue", 1),
        ("tags=red,black", 0),
        ("tags-any=red,black", 1),
        ("not-tags=red", 0),
        ("not-tags-any=black", 1),
    ] {
        let list = own.get(&format!("/v2.0/networks?router:external=False&{query}")).await.expect(200);
        assert_eq!(list.at("/networks").as_array().unwrap().len(), found, "{query}");
    }
    own.delete(&format!("{path}/tags/green")).await.expect(204);
    own.delete(&format!("{path}/tags")).await.expect(204);
    assert_eq!(own.get(&format!("{path}/tags")).await.at("/tags"), json!([]));
}

#[tokio::test]
async fn security_groups_and_rules() {
    let w = world().await;
    let own = w.own();
    let group =
        own.post("/v2.0/security-groups", json!({"security_group": {"name": "web"}})).await.expect(201);
    let rules = group.at("/security_group/security_group_rules");
    let rules = rules.as_array().unwrap();
    assert_eq!(rules.len(), 2, "a new group lets everything out and nothing in");
    assert!(rules.iter().all(|r| r["direction"] == "egress" && r["remote_ip_prefix"].is_null()));
    let id = group.text_at("/security_group/id");
    let rule = |more: Value| {
        let mut body = json!({"security_group_id": id, "direction": "ingress"});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        json!({"security_group_rule": body})
    };
    let root = "/v2.0/security-group-rules";
    let ssh = own.post(root, rule(json!({"protocol": "tcp", "port_range_min": 22, "port_range_max": "22", "remote_ip_prefix": "0.0.0.0/0"}))).await.expect(201);
    assert_eq!(ssh.at("/security_group_rule/port_range_max"), json!(22));
    for (more, status, kind) in [
        (json!({"protocol": 6, "port_range_min": 22, "port_range_max": 22}), 409, "SecurityGroupRuleExists"),
        (json!({"protocol": "nonsense"}), 400, "SecurityGroupRuleInvalidProtocol"),
        (json!({"protocol": "256"}), 400, "SecurityGroupRuleInvalidProtocol"),
        (
            json!({"protocol": "tcp", "port_range_min": 70000, "port_range_max": 70001}),
            400,
            "SecurityGroupInvalidPortValue",
        ),
        (
            json!({"protocol": "tcp", "port_range_min": -2, "port_range_max": 1}),
            400,
            "SecurityGroupInvalidPortValue",
        ),
        (
            json!({"protocol": "tcp", "port_range_min": 80, "port_range_max": 79}),
            400,
            "SecurityGroupInvalidPortRange",
        ),
        (json!({"port_range_min": 80, "port_range_max": 80}), 400, "SecurityGroupProtocolRequiredWithPorts"),
        (json!({"remote_ip_prefix": "fd00::/8"}), 400, "SecurityGroupRuleParameterConflict"),
        (
            json!({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": id}),
            400,
            "SecurityGroupRemoteGroupAndRemoteIpPrefix",
        ),
        (json!({"remote_group_id": uuid::Uuid::nil()}), 404, "SecurityGroupNotFound"),
        (json!({"remote_group_id": "bad_group_id"}), 404, "SecurityGroupNotFound"),
        (json!({"ethertype": "IPv5"}), 400, "HTTPBadRequest"),
        (json!({"direction": "sideways"}), 400, "HTTPBadRequest"),
        (json!({"protocol": "icmp", "port_range_min": 8, "port_range_max": 0}), 201, ""),
        (json!({"protocol": "icmpv6", "ethertype": "IPv6"}), 201, ""),
        (json!({"remote_group_id": id}), 201, ""),
        (json!({"remote_ip_prefix": "10.1.2.3"}), 201, ""),
    ] {
        let answer = own.post(root, rule(more.clone())).await;
        assert_eq!(answer.text_at("/NeutronError/type"), kind, "{more}: {}", answer.text());
        assert_eq!(answer.status, status, "{more}");
    }
    let host = own.get(&format!("{root}?remote_ip_prefix=10.1.2.3/32")).await.expect(200);
    assert_eq!(host.at("/security_group_rules").as_array().unwrap().len(), 1);
    for (body, kind) in [(json!({"name": "default"}), "SecurityGroupDefaultAlreadyExists")] {
        let answer = own.post("/v2.0/security-groups", json!({"security_group": body})).await.expect(409);
        assert_eq!(answer.text_at("/NeutronError/type"), kind);
    }
    let template = own.get("/v2.0/default-security-group-rules").await.expect(200);
    let template = template.at("/default_security_group_rules");
    assert_eq!(template.as_array().unwrap().len(), 4);
    for rule in template.as_array().unwrap() {
        let ingress = rule["direction"] == "ingress";
        assert_eq!(rule["remote_group_id"] == "PARENT", ingress);
        assert_eq!(rule["used_in_non_default_sg"] == true, !ingress);
        assert!(rule["used_in_default_sg"] == true && rule["remote_ip_prefix"].is_null());
    }
}
