//! The client against a real `ovsdb-server` with the Northbound schema; no root needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ovn::ovsdb::{Client, Config, Error, Ref, Remote, Txn, Value, Watch};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(10);
const WATCHES: &[Watch] = &[
    Watch {
        table: "Logical_Switch",
        columns: &["name", "ports", "external_ids", "no_such_column"],
        index: &["k"],
        tell: true,
    },
    Watch {
        table: "Logical_Switch_Port",
        columns: &["name", "addresses", "enabled"],
        index: &[],
        tell: true,
    },
    Watch { table: "Address_Set", columns: &["name", "addresses"], index: &[], tell: true },
    Watch { table: "No_Such_Table", columns: &["name"], index: &[], tell: true },
];

struct Server {
    dir: TempDir,
    child: Option<tokio::process::Child>,
}

impl Server {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("allod-db-").tempdir().unwrap();
        let create = tokio::process::Command::new("ovsdb-tool")
            .arg("create")
            .arg(dir.path().join("nb.db"))
            .arg("/usr/share/ovn/ovn-nb.ovsschema")
            .status();
        assert!(create.await.unwrap().success());
        let mut server = Server { dir, child: None };
        server.start();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("db.sock")
    }

    fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = tokio::process::Command::new("ovsdb-server");
        command
            .arg(format!("--remote=punix:{}", self.socket().display()))
            .arg(format!("--unixctl={}", path("ctl")));
        command.args(["--no-chdir", "-vconsole:off", "-vsyslog:off"]).arg(path("nb.db")).kill_on_drop(true);
        self.child =
            Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    async fn kill(&mut self) {
        self.child.take().unwrap().kill().await.unwrap();
    }
}

async fn connect(socket: &Path) -> Client {
    let client = Client::connect(Config {
        remotes: vec![Remote::from(socket)],
        database: "OVN_Northbound",
        watches: WATCHES,
    });
    client.ready(LIMIT).await.unwrap();
    client
}

fn row<const N: usize>(columns: [(&str, Value); N]) -> BTreeMap<String, Value> {
    columns.into_iter().map(|(c, v)| (c.to_owned(), v)).collect()
}

fn switch(txn: &mut Txn, name: &str) -> Ref {
    let ids = Value::map([("k", name)]);
    txn.insert("Logical_Switch", row([("name", Value::one(name)), ("external_ids", ids)]))
}

#[tokio::test]
async fn what_is_written_is_read_at_once_and_by_others() {
    let server = Server::new().await;
    let (a, b) = (connect(&server.socket()).await, connect(&server.socket()).await);
    let mut seen = b.changes();
    let mut txn = Txn::new();
    let s = switch(&mut txn, "s");
    let columns = row([("name", Value::one("p")), ("enabled", Value::one(true)), ("tier", Value::one(1))]);
    let p = txn.insert("Logical_Switch_Port", columns);
    txn.mutate("Logical_Switch", &s, vec![("ports".into(), "insert", Value::one(p))]);
    txn.comment("a \"comment\"\n");
    a.transact(&txn).await.unwrap();
    let (uuid, port) = a.read(|db| {
        let (_, s) = db.external("Logical_Switch", "k", "s").next().unwrap();
        let port = s.refs("ports").next().unwrap();
        (port, db.row("Logical_Switch_Port", port).unwrap().clone())
    });
    assert_eq!((port.text("name"), port.bool("enabled")), ("p", Some(true)));
    b.wait_for(LIMIT, |db| db.row("Logical_Switch_Port", uuid).map(|_| ())).await.unwrap();
    let change = seen.recv().await.unwrap();
    assert!(change.old.is_none() && change.new.is_some());

    // One element, then two, then none of a set: bare atom, set, default.
    for addresses in [vec!["unknown"], vec!["unknown", "router"], vec![]] {
        let mut txn = Txn::new();
        txn.update(
            "Logical_Switch_Port",
            &Ref::Uuid(uuid),
            row([("addresses", Value::set(addresses.clone()))]),
        );
        a.transact(&txn).await.unwrap();
        let n = addresses.len();
        b.wait_for(LIMIT, |db| {
            (db.row("Logical_Switch_Port", uuid)?.texts("addresses").count() == n).then_some(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn guards_and_constraints_are_told() {
    let server = Server::new().await;
    let client = connect(&server.socket()).await;
    let mut txn = Txn::new();
    switch(&mut txn, "s");
    client.transact(&txn).await.unwrap();

    let absent = |name: &str| {
        let mut txn = Txn::new();
        txn.wait("Logical_Switch", vec![("name".into(), "==", Value::one(name))], &["name"], vec![]);
        switch(&mut txn, name);
        txn
    };
    assert!(client.transact(&absent("s")).await.unwrap_err().is_stale());
    client.transact(&absent("t")).await.unwrap();

    let set = |name: &str| {
        let mut txn = Txn::new();
        txn.insert("Address_Set", row([("name", Value::one(name))]));
        txn
    };
    client.transact(&set("a")).await.unwrap();
    let error = client.transact(&set("a")).await.unwrap_err();
    assert!(error.is_stale(), "a duplicate name stands after the results: {error}");

    let mut bad = Txn::new();
    bad.insert("Logical_Switch", row([("name", Value::one(7))]));
    match client.transact(&bad).await {
        Err(Error::Refused { error, .. }) => assert_ne!(error, "timed out"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.read(|db| db.rows("Logical_Switch").count()), 2, "nothing of it took place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_is_survived() {
    let mut server = Server::new().await;
    let client = connect(&server.socket()).await;
    let mut txn = Txn::new();
    for n in 0..5000 {
        switch(&mut txn, &format!("s{n}"));
    }
    client.transact(&txn).await.unwrap();
    assert_eq!(client.read(|db| db.rows("Logical_Switch").count()), 5000);

    server.kill().await;
    let mut changes = client.changes();
    // Waits in the queue until the server is back.
    let later = tokio::spawn({
        let client = client.clone();
        async move {
            let mut txn = Txn::new();
            switch(&mut txn, "later");
            client.transact(&txn).await
        }
    });
    let other = {
        server.start();
        connect(&server.socket()).await
    };
    client.ready(LIMIT).await.unwrap();
    if let Err(e) = later.await.unwrap() {
        assert!(matches!(e, Error::Disconnected(_)), "sent while it broke: {e}");
        let mut txn = Txn::new();
        switch(&mut txn, "later");
        client.transact(&txn).await.unwrap();
    }
    let change = changes.recv().await.unwrap();
    assert_eq!(change.new.unwrap().text("name"), "later", "a new dump is not told as 5000 changes");
    other.wait_for(LIMIT, |db| (db.rows("Logical_Switch").count() == 5001).then_some(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_one_connection() {
    let server = Server::new().await;
    let client = connect(&server.socket()).await;
    let calls = (0..200).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut txn = Txn::new();
            switch(&mut txn, &format!("s{n}"));
            client.transact(&txn).await.unwrap();
            client.read(|db| db.named("Logical_Switch", &format!("s{n}")).count())
        })
    });
    for call in futures::future::join_all(calls).await {
        assert_eq!(call.unwrap(), 1);
    }
}
