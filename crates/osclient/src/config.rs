//! Which cloud, and how to reach it: `clouds.yaml`, `secure.yaml`, `clouds-public.yaml` and `OS_*`, found and joined as
//! openstacksdk does. Profiles that openstacksdk ships (`vendors`) are not known here, except those in a file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Where configuration is looked for; [`Environment::of_process`] outside of tests.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Variables (only those that begin with `OS_` matter).
    pub variables: BTreeMap<String, String>,
    /// The current directory.
    pub current: PathBuf,
    /// The user's configuration directory (`~/.config`).
    pub config_home: Option<PathBuf>,
    /// Directories of the machine (`/etc/xdg`, `/etc`), each with `openstack/` in it.
    pub site: Vec<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let home = std::env::var_os("SNAP_REAL_HOME").or_else(|| std::env::var_os("HOME")).map(PathBuf::from);
        let config_home = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| home.map(|h| h.join(".config")));
        Environment {
            variables: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .filter(|(k, _)| k.starts_with("OS_"))
                .collect(),
            current: std::env::current_dir().unwrap_or_default(),
            config_home,
            site: vec!["/etc/xdg".into(), "/etc".into()],
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// The first file of this name that exists, or the one the variable names.
    fn find(&self, stem: &str, variable: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.variable(variable) {
            let path = PathBuf::from(path);
            return if path.is_file() {
                Ok(Some(path))
            } else {
                Err(Error::config(format!("{variable}: {} is no file", path.display())))
            };
        }
        let mut dirs = vec![self.current.clone()];
        dirs.extend(self.config_home.iter().map(|d| d.join("openstack")));
        dirs.extend(self.site.iter().map(|d| d.join("openstack")));
        Ok(dirs
            .iter()
            .flat_map(|d| ["yaml", "yml", "json"].map(|suffix| d.join(format!("{stem}.{suffix}"))))
            .find(|p| p.is_file()))
    }
}

/// One cloud, in one region, with everything needed to log in.
#[derive(Clone, Default)]
pub struct Cloud {
    /// Its name in the file; `envvars` when it comes from `OS_*`.
    pub name: String,
    /// The region chosen; `None`: whatever the catalog has.
    pub region: Option<String>,
    /// All regions the file names.
    pub regions: Vec<String>,
    /// How to log in (`password`, `v3applicationcredential`, …).
    pub auth_type: String,
    /// What to log in with; holds secrets.
    pub auth: BTreeMap<String, String>,
    /// Which endpoints of the catalog (`public`).
    pub interface: String,
    /// Whether certificates are checked.
    pub verify: bool,
    /// CA bundle instead of the machine's.
    pub cacert: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate.
    pub key: Option<PathBuf>,
    /// Time limit of one request.
    pub timeout: Option<Duration>,
    /// Endpoints that hold instead of the catalog's, by service type with underscores.
    pub overrides: BTreeMap<String, String>,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud")
            .field("name", &self.name)
            .field("region", &self.region)
            .field("auth_type", &self.auth_type)
            .finish_non_exhaustive()
    }
}

impl Cloud {
    /// The cloud `name`, else that of `OS_CLOUD`, of `OS_*`, or the only one in the file; in `region`, else in the one
    /// configured first.
    pub fn load(environment: &Environment, name: Option<&str>, region: Option<&str>) -> Result<Cloud> {
        let (mut clouds, public) = clouds(environment)?;
        let own = environment.variable("OS_CLOUD_NAME").unwrap_or("envvars").to_owned();
        let from_variables = of_variables(environment);
        let name = match name.or(environment.variable("OS_CLOUD")) {
            Some(name) => name.to_owned(),
            None if from_variables.is_some() => own.clone(),
            None if clouds.len() == 1 => clouds.keys().next().cloned().unwrap_or_default(),
            None if clouds.is_empty() => {
                return Err(Error::config("no clouds.yaml found and no OS_* variables set"));
            }
            None => {
                let known: Vec<_> = clouds.keys().map(String::as_str).collect();
                return Err(Error::config(format!("which cloud? --cloud or OS_CLOUD: {}", known.join(", "))));
            }
        };
        if let Some(found) = from_variables {
            clouds.entry(own).or_insert(Value::Object(found));
        }
        let Some(Value::Object(found)) = clouds.remove(&name) else {
            let known: Vec<_> = clouds.keys().map(String::as_str).collect();
            return Err(Error::config(format!("no cloud {name:?}; known: {}", known.join(", "))));
        };
        let mut all = Map::new();
        if let Some(profile) = found.get("profile").or(found.get("cloud")).and_then(Value::as_str) {
            match public.get(profile) {
                Some(Value::Object(profile)) => merge(&mut all, profile.clone()),
                _ => {
                    return Err(Error::config(format!(
                        "cloud {name:?}: profile {profile:?} is in no clouds-public.yaml"
                    )));
                }
            }
        }
        merge(&mut all, found);
        of_map(name, all, region.or(environment.variable("OS_REGION_NAME")))
    }

    /// A value of the `auth` section.
    pub fn auth(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|n| self.auth.get(*n)).map(String::as_str).filter(|v| !v.is_empty())
    }
}

type Clouds = Map<String, Value>;

/// `clouds` of `clouds.yaml` with `secure.yaml` laid over it, and `public-clouds`.
fn clouds(environment: &Environment) -> Result<(Clouds, Clouds)> {
    let section = |path: Option<PathBuf>, name: &str| -> Result<Clouds> {
        let Some(path) = path else { return Ok(Map::new()) };
        Ok(match read(&path)?.remove(name) {
            Some(Value::Object(section)) => section,
            _ => Map::new(),
        })
    };
    let mut clouds = section(environment.find("clouds", "OS_CLIENT_CONFIG_FILE")?, "clouds")?;
    let secure = section(environment.find("secure", "OS_CLIENT_SECURE_FILE")?, "clouds")?;
    merge(&mut clouds, secure);
    let public = section(environment.find("clouds-public", "OS_CLIENT_VENDOR_FILE")?, "public-clouds")?;
    Ok((clouds, public))
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::config(format!("{}: {e}", path.display())))?;
    match serde_norway::from_str::<Value>(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(Error::config(format!("{}: not a mapping", path.display()))),
        // The parser's text may quote the line, and with it a password.
        Err(e) => Err(Error::config(match e.location() {
            Some(at) => format!("{}: not YAML at line {}, column {}", path.display(), at.line(), at.column()),
            None => format!("{}: not YAML", path.display()),
        })),
    }
}

/// Lays `over` over `under`, mapping by mapping.
fn merge(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Names that stand in `auth` wherever they are found.
const AUTH_KEYS: &[&str] = &[
    "auth_url",
    "username",
    "user_id",
    "password",
    "token",
    "project_id",
    "project_name",
    "tenant_id",
    "tenant_name",
    "project_domain_id",
    "project_domain_name",
    "user_domain_id",
    "user_domain_name",
    "domain_id",
    "domain_name",
    "default_domain",
    "default_domain_id",
    "default_domain_name",
    "system_scope",
    "trust_id",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
    "identity_provider",
    "protocol",
    "client_id",
    "client_secret",
    "access_token",
    "access_token_endpoint",
    "discovery_endpoint",
    "openid_scope",
    "passcode",
];

/// The cloud that `OS_*` describe; `None` when they describe none.
fn of_variables(environment: &Environment) -> Option<Map<String, Value>> {
    let selectors = ["OS_CLOUD", "OS_REGION_NAME", "OS_CACHE", "OS_CLOUD_NAME"];
    let mut map = Map::new();
    for (name, value) in &environment.variables {
        let about_files = name.starts_with("OS_CLIENT_") || name.starts_with("OS_DEBUG");
        if value.is_empty() || about_files {
            continue;
        }
        if let Some(key) = name.strip_prefix("OS_") {
            map.insert(key.to_lowercase(), Value::String(value.clone()));
        }
    }
    let telling = environment.variables.keys().any(|k| {
        k.starts_with("OS_")
            && !k.starts_with("OS_CLIENT_")
            && !k.starts_with("OS_DEBUG")
            && !selectors.contains(&k.as_str())
    });
    telling.then_some(map)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

fn truth(value: Option<&Value>, default: bool) -> bool {
    match value {
        Some(Value::Bool(b)) => *b,
        Some(Value::String(s)) => s.eq_ignore_ascii_case("true"),
        _ => default,
    }
}

fn of_map(name: String, mut map: Map<String, Value>, region: Option<&str>) -> Result<Cloud> {
    let normal: Map<String, Value> =
        std::mem::take(&mut map).into_iter().map(|(k, v)| (k.replace('-', "_"), v)).collect();
    map = normal;
    let regions = regions(&map);
    let region = match (region, regions.first()) {
        (Some(wanted), Some(_)) => match regions.iter().find(|(name, _)| name == wanted) {
            Some((_, values)) => {
                merge(&mut map, values.clone());
                Some(wanted.to_owned())
            }
            None => {
                let known: Vec<_> = regions.iter().map(|(n, _)| n.as_str()).collect();
                return Err(Error::config(format!(
                    "cloud {name:?} has no region {wanted:?}; known: {}",
                    known.join(", ")
                )));
            }
        },
        (Some(wanted), None) => Some(wanted.to_owned()),
        (None, Some((first, values))) => {
            merge(&mut map, values.clone());
            Some(first.clone())
        }
        (None, None) => map.get("region_name").and_then(text),
    };
    let mut auth = BTreeMap::new();
    for (key, value) in &map {
        if AUTH_KEYS.contains(&key.as_str())
            && let Some(value) = text(value)
        {
            auth.insert(key.clone(), value);
        }
    }
    if let Some(Value::Object(section)) = map.get("auth") {
        auth.extend(section.iter().filter_map(|(k, v)| Some((k.replace('-', "_"), text(v)?))));
    }
    if !auth.contains_key("auth_url") {
        return Err(Error::config(format!("cloud {name:?} has no auth_url")));
    }
    let get = |key: &str| map.get(key).and_then(text).filter(|v| !v.is_empty());
    let path = |key: &str| get(key).map(|p| expand(&p));
    let auth_type = get("auth_type").unwrap_or_else(|| guess(&auth).to_owned());
    let interface = get("interface").or(get("endpoint_type")).unwrap_or_else(|| "public".into());
    let interface = interface.strip_suffix("URL").unwrap_or(&interface).to_owned();
    let timeout = match get("api_timeout") {
        Some(seconds) => {
            Some(seconds.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(
                || Error::config(format!("cloud {name:?}: api_timeout {seconds:?} is no number of seconds")),
            )?)
        }
        None => None,
    };
    Ok(Cloud {
        region,
        regions: regions.into_iter().map(|(n, _)| n).collect(),
        auth_type,
        auth,
        interface,
        verify: truth(map.get("verify"), true) && !truth(map.get("insecure"), false),
        cacert: path("cacert"),
        cert: path("cert"),
        key: path("key"),
        timeout,
        overrides: map
            .iter()
            .filter_map(|(k, v)| Some((k.strip_suffix("_endpoint_override")?.to_owned(), text(v)?)))
            .collect(),
        name,
    })
}

/// What the credentials look like when nothing says how to log in.
fn guess(auth: &BTreeMap<String, String>) -> &'static str {
    if auth.contains_key("application_credential_secret") {
        "v3applicationcredential"
    } else if auth.contains_key("token") && !auth.contains_key("password") {
        "token"
    } else {
        "password"
    }
}

/// `regions`: names, or mappings with `name` and `values`.
fn regions(map: &Map<String, Value>) -> Vec<(String, Map<String, Value>)> {
    let Some(Value::Array(list)) = map.get("regions") else { return Vec::new() };
    list.iter()
        .filter_map(|entry| match entry {
            Value::String(name) => Some((name.clone(), Map::new())),
            Value::Object(entry) => {
                let values = match entry.get("values") {
                    Some(Value::Object(values)) => values.clone(),
                    _ => Map::new(),
                };
                Some((entry.get("name").and_then(text)?, values))
            }
            _ => None,
        })
        .collect()
}

fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(dir: &Path, clouds: &str, secure: &str) -> Environment {
        std::fs::write(dir.join("clouds.yaml"), clouds).unwrap();
        if !secure.is_empty() {
            std::fs::write(dir.join("secure.yaml"), secure).unwrap();
        }
        Environment { current: dir.to_owned(), ..Environment::default() }
    }

    const CLOUDS: &str = "
clouds:
  one:
    auth: {auth_url: https://one/identity, username: u, project_name: p, user_domain_name: Default, project_domain_name: Default}
    cacert: /ca.crt
    interface: internalURL
  two:
    auth-type: v3applicationcredential
    auth: {auth_url: https://two, application_credential_id: i}
    regions: [North, {name: South, values: {verify: false, auth: {auth_url: https://two-south}}}]
    object_store_endpoint_override: https://swift
";

    #[test]
    fn secrets_are_laid_over_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let environment = environment(dir.path(), CLOUDS, "clouds: {one: {auth: {password: 12345}}}");
        let cloud = Cloud::load(&environment, Some("one"), None).unwrap();
        assert_eq!((cloud.auth_type.as_str(), cloud.auth(&["password"])), ("password", Some("12345")));
        assert_eq!(
            (cloud.interface.as_str(), cloud.cacert.as_deref()),
            ("internal", Some(Path::new("/ca.crt")))
        );
        assert!(cloud.verify && !format!("{cloud:?}").contains("12345"));
    }

    #[test]
    fn regions_bring_their_own_values() {
        let dir = tempfile::tempdir().unwrap();
        let environment = environment(dir.path(), CLOUDS, "");
        let first = Cloud::load(&environment, Some("two"), None).unwrap();
        assert_eq!(
            (first.region.as_deref(), first.auth(&["auth_url"])),
            (Some("North"), Some("https://two"))
        );
        assert_eq!(
            (first.auth_type.as_str(), first.overrides["object_store"].as_str()),
            ("v3applicationcredential", "https://swift")
        );
        let south = Cloud::load(&environment, Some("two"), Some("South")).unwrap();
        assert_eq!((south.verify, south.auth(&["auth_url"])), (false, Some("https://two-south")));
        assert!(
            Cloud::load(&environment, Some("two"), Some("West"))
                .unwrap_err()
                .message
                .contains("North, South")
        );
    }

    #[test]
    fn which_cloud_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let mut environment = environment(dir.path(), CLOUDS, "");
        assert!(Cloud::load(&environment, None, None).unwrap_err().message.contains("one, two"));
        environment.variables.insert("OS_CLOUD".into(), "one".into());
        assert_eq!(Cloud::load(&environment, None, None).unwrap().name, "one");
        environment.variables.remove("OS_CLOUD");
        for (name, value) in [("OS_AUTH_URL", "https://three"), ("OS_TOKEN", "t"), ("OS_REGION_NAME", "R")] {
            environment.variables.insert(name.into(), value.into());
        }
        let cloud = Cloud::load(&environment, None, None).unwrap();
        assert_eq!(
            (cloud.name.as_str(), cloud.auth_type.as_str(), cloud.region.as_deref()),
            ("envvars", "token", Some("R"))
        );
        environment.variables.insert("OS_CLIENT_CONFIG_FILE".into(), "/nowhere".into());
        assert!(Cloud::load(&environment, Some("one"), None).unwrap_err().message.contains("/nowhere"));
    }

    #[test]
    fn a_broken_file_is_told_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let environment = environment(dir.path(), "clouds:\n  one: {auth: {password: geheim\n", "");
        let error = Cloud::load(&environment, Some("one"), None).unwrap_err().to_string();
        assert!(error.contains("clouds.yaml: not YAML") && !error.contains("geheim"), "{error}");
    }
}
