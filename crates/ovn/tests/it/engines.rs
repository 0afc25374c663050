use std::time::{Duration, Instant};

use super::support::{Bed, exec, pss, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_heals_adopts_and_leaves_nothing() {
    let bed = Bed::new("life");
    let began = Instant::now();
    let engines = bed.start().await;
    let cold = began.elapsed();
    println!("cold start {cold:?}, datapath {:?}", engines.datapath());
    let addresses = exec(bed.netns(), &["ip", "-o", "addr", "show", "br-ex"]).await.unwrap();
    assert!(addresses.contains("172.24.4.1/24"), "{addresses}");

    let status = engines.status();
    assert_eq!(status.len(), 4);
    let mut total = 0;
    for (name, s) in &status {
        let kib = pss(s.pid.unwrap());
        total += kib;
        println!("{name}: pid {:?} PSS {kib} KiB", s.pid);
    }
    println!("all: PSS {total} KiB");
    assert!(total < 70 * 1024, "{total} KiB");

    // Each daemon is killed and comes back.
    for name in ["ovsdb", "northd", "vswitchd", "controller"] {
        let pid = engines.status()[name].pid.unwrap();
        let began = Instant::now();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        until(name, Duration::from_secs(5), async || engines.status()[name].pid.filter(|p| *p != pid)).await;
        println!("{name} killed, back after {:?}", began.elapsed());
    }
    until("the bridge's address", Duration::from_secs(5), async || {
        exec(bed.netns(), &["ip", "-o", "addr", "show", "br-ex"])
            .await
            .ok()
            .filter(|a| a.contains("172.24.4.1/24"))
    })
    .await;

    // Another process takes over: same daemons.
    let before: Vec<_> = engines.status().values().map(|s| s.pid).collect();
    drop(engines);
    let began = Instant::now();
    let engines = bed.start().await;
    println!("adopted in {:?}", began.elapsed());
    let after: Vec<_> = engines.status().values().map(|s| s.pid).collect();
    assert_eq!(before, after);
    assert!(engines.status().values().all(|s| s.adopted));

    engines.stop().await.unwrap();
    // In a namespace that is not ours, each device would have to be removed by itself.
    let links = exec(bed.netns(), &["ip", "-o", "link"]).await.unwrap();
    for device in ["ovs-netdev", "br-int", "br-ex"] {
        assert!(
            !links.contains(device) || bed.dir.path().join(format!("ovn/made/link.{device}")).exists(),
            "{device}"
        );
    }
    for pid in after.into_iter().flatten() {
        assert!(!std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists() || pss(pid) == 0);
    }
    let netns = bed.netns().to_owned();
    drop(bed);
    assert!(!std::path::Path::new("/run/netns").join(netns).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_switch_in_one_namespace_is_refused() {
    let first = Bed::new("one");
    let engines = first.start().await;
    let mut second = Bed::new("two");
    second.config.netns = first.config.netns.clone();
    let error = ovn::Engines::start(second.config.clone()).await.err().unwrap();
    assert!(error.chain().contains("runs in this network namespace"), "{}", error.chain());
    engines.stop().await.unwrap();
    ovn::engines::purge(second.dir.path(), first.config.netns.as_deref()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_state_directory_and_bad_names() {
    let mut bed = Bed::new("long");
    let engines = {
        bed.config.state_dir = bed.dir.path().join("x".repeat(90));
        bed.start().await
    };
    assert!(engines.run_dir().starts_with("/run/allod"), "{}", engines.run_dir().display());
    let run = engines.run_dir().to_owned();
    engines.stop().await.unwrap();
    ovn::engines::purge(&bed.config.state_dir, bed.config.netns.as_deref()).await.unwrap();
    assert!(!run.exists());
    for instance in ["UPPER", "a-b", "toolongname"] {
        bed.config.instance = instance.into();
        let error = ovn::Engines::start(bed.config.clone()).await.err().unwrap();
        assert_eq!(error.kind(), base::Kind::BadRequest, "{instance}");
    }
}
