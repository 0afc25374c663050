//! `allod tempest-config`: what Tempest must know of a cloud to run the tests that scs-0128 asks for, found out with the
//! credentials of plain users (or of an administrator, who lets Tempest make its own).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use osclient::{Cloud, Environment, Options, Session, parameter};
use serde_json::{Value, json};

/// Ids of the tests.
const TESTS: &str = include_str!("../data/tempest-scs-0128.txt");

/// Write tempest.conf, accounts.yaml and the list of tests for a cloud.
#[derive(Args)]
pub struct TempestConfig {
    /// Users (entries of clouds.yaml), in projects of their own; the first one looks around. Two per worker are needed.
    #[arg(long = "cloud", value_name = "NAME")]
    clouds: Vec<String>,
    /// A user with the role reader only.
    #[arg(long, value_name = "NAME")]
    reader: Option<String>,
    /// An administrator: Tempest then makes users and projects itself.
    #[arg(long, value_name = "NAME")]
    admin: Option<String>,
    /// Region [default: the first].
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Image to boot [default: the public one with the least disk].
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// A second image [default: the next].
    #[arg(long, value_name = "NAME")]
    image_alt: Option<String>,
    /// Who logs in to guests of the image.
    #[arg(long, value_name = "NAME")]
    ssh_user: Option<String>,
    /// Flavor to boot with [default: the smallest with a disk that holds the image].
    #[arg(long, value_name = "NAME")]
    flavor: Option<String>,
    /// A second flavor [default: the next larger].
    #[arg(long, value_name = "NAME")]
    flavor_alt: Option<String>,
    /// No login to guests: what boots is not looked into.
    #[arg(long)]
    no_validation: bool,
    /// Where to write.
    #[arg(long, value_name = "DIR", default_value = "tempest")]
    output: PathBuf,
}

/// What was found.
struct Found {
    image: Value,
    image_alt: Value,
    flavor: Value,
    flavor_alt: Value,
    external: Option<Value>,
    fixed: Option<String>,
}

impl TempestConfig {
    /// Does it.
    pub async fn main(self) -> Result<ExitCode> {
        let environment = Environment::of_process();
        let load = |name: Option<&str>| Cloud::load(&environment, name, self.region.as_deref());
        let first = self.clouds.first().or(self.admin.as_ref()).map(String::as_str);
        let session =
            Session::connect(load(first)?, Options { retries: 2, timeout: Duration::from_secs(60) }).await?;
        let found = self.look(&session).await?;
        std::fs::create_dir_all(&self.output).with_context(|| format!("{}", self.output.display()))?;
        let dir = std::fs::canonicalize(&self.output)?;
        let admin = self.admin.as_deref().map(|name| load(Some(name))).transpose()?;
        let mut users = Vec::new();
        for name in &self.clouds {
            users.push((load(Some(name))?, None));
        }
        if users.is_empty() && admin.is_none() {
            users.push((session.cloud().clone(), None));
        }
        if let Some(name) = &self.reader {
            users.push((load(Some(name))?, Some("reader")));
        }
        secret(&dir.join("tempest.conf"), &self.conf(&session, &found, admin.as_ref(), &dir))?;
        if admin.is_none() {
            secret(&dir.join("accounts.yaml"), &accounts(&users, found.fixed.as_deref())?)?;
        }
        let tests: Vec<&str> = TESTS.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
        std::fs::write(dir.join("tests.txt"), tests.join("\n") + "\n")?;
        let workers = if admin.is_some() { 2 } else { (users.len() / 2).max(1) };
        let mut out = std::io::stdout();
        let name = |v: &Value| v.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let _ = writeln!(
            out,
            "images {:?} and {:?}, flavors {} and {}, {} users; {} tests:\n  \
             python3 -m venv venv && venv/bin/pip install tempest\n  \
             venv/bin/tempest run --config-file {dir}/tempest.conf --load-list {dir}/tests.txt --concurrency {workers}",
            name(&found.image),
            name(&found.image_alt),
            name(&found.flavor),
            name(&found.flavor_alt),
            users.len(),
            tests.len(),
            dir = dir.display(),
        );
        if admin.is_none() && users.len() < 2 {
            let _ = writeln!(out, "Most tests want two users in different projects: name more with --cloud.");
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn look(&self, session: &Session) -> Result<Found> {
        let mut images = session.service("image", "v2")?.list("/images", "images").await?;
        images.retain(|i| i.get("status").and_then(Value::as_str) == Some("active"));
        let number = |v: &Value, name: &str| v.get(name).and_then(Value::as_i64).unwrap_or(0);
        images.sort_by_key(|i| (number(i, "min_disk"), number(i, "min_ram"), number(i, "size")));
        let (image, image_alt) =
            two(&images, self.image.as_deref(), self.image_alt.as_deref(), "active image")?;
        let mut flavors = session.service("compute", "v2.1")?.list("/flavors/detail", "flavors").await?;
        let disk = number(&image, "min_disk").max(number(&image_alt, "min_disk")).max(1);
        let ram = number(&image, "min_ram").max(number(&image_alt, "min_ram"));
        if self.flavor.is_none() || self.flavor_alt.is_none() {
            flavors.retain(|f| {
                let named = [&self.flavor, &self.flavor_alt].into_iter().flatten().any(|n| is(f, n));
                named || (number(f, "disk") >= disk && number(f, "ram") >= ram)
            });
        }
        flavors.sort_by_key(|f| (number(f, "ram"), number(f, "vcpus"), number(f, "disk")));
        let wanted = format!("flavor with a disk of {disk} GiB and {ram} MiB");
        let (flavor, flavor_alt) =
            two(&flavors, self.flavor.as_deref(), self.flavor_alt.as_deref(), &wanted)?;
        let network = session.service("network", "v2.0")?;
        let external =
            network.list(&format!("/networks?{}", parameter("router:external", "True")), "networks").await?;
        let default = external.iter().find(|n| n.get("is_default") == Some(&json!(true)));
        let own =
            network.list(&format!("/networks?{}", parameter("router:external", "False")), "networks").await?;
        let fixed =
            own.iter().find(|n| n.get("subnets").and_then(Value::as_array).is_some_and(|s| !s.is_empty()));
        Ok(Found {
            image,
            image_alt,
            flavor,
            flavor_alt,
            external: default.or(external.first()).cloned(),
            fixed: fixed.and_then(|n| n.get("name")).and_then(Value::as_str).map(str::to_owned),
        })
    }

    fn conf(&self, session: &Session, found: &Found, admin: Option<&Cloud>, dir: &Path) -> String {
        let cloud = session.cloud();
        let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let region = cloud.region.clone().or_else(|| {
            let catalog = session.catalog();
            let endpoints = catalog.0.iter().flat_map(|e| &e.endpoints);
            endpoints
                .filter(|e| e.interface == cloud.interface)
                .find_map(|e| e.region_id.clone().or(e.region.clone()))
        });
        let region = region.unwrap_or_default();
        let ca = cloud.cacert.as_deref().map(|p| p.display().to_string()).unwrap_or_default();
        let user = self.ssh_user.clone().unwrap_or_else(|| match text(&found.image, "image_original_user") {
            user if user.is_empty() || user == "none" => "root".to_owned(),
            user => user,
        });
        let place = dir.display();
        let auth = match admin {
            Some(admin) => {
                let value =
                    |names: &[&str], otherwise: &str| admin.auth(names).unwrap_or(otherwise).to_owned();
                format!(
                    "use_dynamic_credentials = true\nadmin_username = {}\nadmin_password = {}\nadmin_project_name = {}\n\
                     admin_domain_name = {}\n",
                    value(&["username"], ""),
                    value(&["password"], ""),
                    value(&["project_name"], "admin"),
                    value(&["user_domain_name"], "Default"),
                )
            }
            None => format!("use_dynamic_credentials = false\ntest_accounts_file = {place}/accounts.yaml\n"),
        };
        let has = |kind: &str| session.endpoint(kind).is_ok();
        let mut out = format!(
            "# Made by allod tempest-config.\n[DEFAULT]\nlog_file = {place}/tempest.log\n\
             [oslo_concurrency]\nlock_path = {place}/lock\n\
             [auth]\n{auth}tempest_roles = member\n\
             [identity]\nauth_version = v3\nuri_v3 = {}\nregion = {region}\nv3_endpoint_type = {}\n\
             ca_certificates_file = {ca}\ndisable_ssl_certificate_validation = {}\n\
             [identity-feature-enabled]\napi_v2 = false\napi_v2_admin = false\nsecurity_compliance = true\n",
            osclient::auth::identity_url(cloud),
            cloud.interface,
            !cloud.verify,
        );
        out.push_str(&format!(
            "[compute]\nimage_ref = {}\nimage_ref_alt = {}\nflavor_ref = {}\nflavor_ref_alt = {}\n",
            text(&found.image, "id"),
            text(&found.image_alt, "id"),
            text(&found.flavor, "id"),
            text(&found.flavor_alt, "id"),
        ));
        if let Some(fixed) = &found.fixed {
            out.push_str(&format!("fixed_network_name = {fixed}\n"));
        }
        out.push_str("[compute-feature-enabled]\nresize = true\nconsole_output = true\n");
        if let Some(external) = &found.external {
            let (id, name) = (text(external, "id"), text(external, "name"));
            out.push_str(&format!("[network]\npublic_network_id = {id}\nfloating_network_name = {name}\n"));
        }
        out.push_str("[network-feature-enabled]\nipv6_subnet_attributes = true\n");
        let validate = !self.no_validation && found.external.is_some();
        out.push_str(&format!(
            "[validation]\nrun_validation = {validate}\nimage_ssh_user = {user}\nssh_key_type = ecdsa\nconnect_method = floating\n"
        ));
        let flags = [
            ("cinder", "block-storage"),
            ("glance", "image"),
            ("neutron", "network"),
            ("nova", "compute"),
            ("swift", "object-store"),
        ];
        out.push_str("[service_available]\n");
        for (name, kind) in flags {
            out.push_str(&format!("{name} = {}\n", has(kind)));
        }
        out.push_str(&format!(
            "[volume]\ncatalog_type = {}\n[volume-feature-enabled]\nbackup = {}\n",
            if session.catalog().has("block-storage") { "block-storage" } else { "volumev3" },
            false,
        ));
        out
    }
}

fn is(thing: &Value, wanted: &str) -> bool {
    ["name", "id"].iter().any(|k| thing.get(*k).and_then(Value::as_str) == Some(wanted))
}

/// The thing asked for, or the first; and another one.
fn two(all: &[Value], first: Option<&str>, second: Option<&str>, what: &str) -> Result<(Value, Value)> {
    let find = |wanted: &str| {
        all.iter().find(|t| is(t, wanted)).with_context(|| format!("there is no {what} {wanted:?}"))
    };
    let one = match first {
        Some(wanted) => find(wanted)?,
        None => {
            let free = all.iter().find(|t| second.is_none_or(|s| !is(t, s)));
            free.or(all.first()).with_context(|| format!("there is no {what}"))?
        }
    };
    let other = match second {
        Some(wanted) => find(wanted)?,
        None => all.iter().find(|t| t.get("id") != one.get("id")).unwrap_or(one),
    };
    Ok((one.clone(), other.clone()))
}

/// Users for Tempest.
fn accounts(users: &[(Cloud, Option<&str>)], network: Option<&str>) -> Result<String> {
    let mut all = Vec::new();
    for (cloud, role) in users {
        let (Some(name), Some(password)) = (cloud.auth(&["username"]), cloud.auth(&["password"])) else {
            bail!("cloud {:?}: Tempest logs in with user name and password; it has none", cloud.name);
        };
        let domain = cloud.auth(&["user_domain_name", "default_domain_name"]).unwrap_or("Default");
        let mut account = json!({
            "username": name, "password": password, "user_domain_name": domain,
            "project_name": cloud.auth(&["project_name", "tenant_name"]),
            "project_domain_name": cloud.auth(&["project_domain_name", "default_domain_name"]).unwrap_or(domain),
        });
        if let Some(role) = role {
            account["roles"] = json!([role]);
        }
        if let Some(network) = network {
            account["resources"] = json!({"network": network});
        }
        all.push(account);
    }
    Ok(serde_norway::to_string(&all)?)
}

/// A file only its owner reads.
fn secret(path: &Path, text: &str) -> Result<()> {
    let _ = std::fs::remove_file(path);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_all_there() {
        assert_eq!(TESTS.lines().filter(|l| l.starts_with("tempest.api.")).count(), 258);
    }

    #[test]
    fn two_different_ones_are_chosen() {
        let all: Vec<Value> = ["a", "b", "c"].iter().map(|n| json!({"id": n, "name": n})).collect();
        let names = |first, second| {
            let (a, b) = two(&all, first, second, "thing").unwrap();
            format!("{}{}", a["id"].as_str().unwrap(), b["id"].as_str().unwrap())
        };
        assert_eq!(names(None, None), "ab");
        assert_eq!(names(Some("b"), None), "ba");
        assert_eq!(names(None, Some("a")), "ba");
        assert!(two(&all, Some("x"), None, "thing").is_err());
        assert!(two(&[], None, None, "thing").is_err());
    }
}
