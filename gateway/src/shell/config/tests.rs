use std::io::Write;

use super::keys::{KEYS, Kind};
use super::*;

fn load_with(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Settings, ConfigError> {
    let mut temp = tempfile::NamedTempFile::new().unwrap();
    temp.write_all(file.as_bytes()).unwrap();
    let path = temp.path().to_str().unwrap().to_owned();
    let mut arguments = vec!["gateway", "--config", &path];
    arguments.extend(flags);
    let matches = with_flags(Command::new("gateway")).try_get_matches_from(arguments).unwrap();
    load(&matches, environment.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))))
        .map_err(|error| ConfigError(vec![Problem(error.to_string().replace(&path, "FILE"))]))
}

#[test]
fn nothing_configured_is_standalone_on_loopback() {
    let settings = load_with("", &[], &[]).unwrap();
    assert!(settings.is_standalone());
    assert_eq!(settings.listen.to_string(), "127.0.0.1:7400");
    assert_eq!(settings.admin.to_string(), "127.0.0.1:7401");
    assert_eq!((settings.gateway_id, settings.partitions, settings.capacity), (1, 1024, 200_000));
    assert_eq!(usize::from(settings.shards), millrace_edge::affinity::cpu_count());
    assert!(settings.auth.jwks_file.is_none());
}

#[test]
fn flags_win_over_variables_and_those_over_the_file() {
    let file = "drain_s = 1\nlease_ttl_ms = 2000\ncapacity = 3000\n[auth]\nleeway_s = 4\n";
    let environment =
        [("MILLRACE_LEASE_TTL_MS", "2001"), ("MILLRACE_CAPACITY", "3001"), ("HOME", "/nowhere")];
    let settings = load_with(file, &environment, &["--capacity", "3002", "--auth-issuer", "a, b"]).unwrap();
    assert_eq!(settings.drain, Duration::from_secs(1));
    assert_eq!(settings.lease_ttl, Duration::from_millis(2001));
    assert_eq!(settings.capacity, 3002);
    assert_eq!(settings.auth.leeway, Duration::from_secs(4));
    assert_eq!(settings.auth.issuers, ["a", "b"]);
}

#[test]
fn every_kind_reads_from_every_place() {
    let file = "dispatchers = ['a:1', 'b:2']\ngateway_id = 7\nplatforms = { ios = 'newest_wins' }\n\
                [auth]\nhs256 = true\nhs256_secret_file = 's'";
    let environment = [
        ("MILLRACE_DISPATCHERS", "a:1,b:2"),
        ("MILLRACE_GATEWAY_ID", "7"),
        ("MILLRACE_PLATFORMS", "ios=newest_wins"),
        ("MILLRACE_AUTH_HS256", "true"),
        ("MILLRACE_AUTH_HS256_SECRET_FILE", "s"),
        ("MILLRACE_DISPATCHER_LISTEN", "another program's"),
    ];
    let flags = [
        "--dispatchers=a:1,b:2",
        "--gateway-id=7",
        "--platforms=ios=newest_wins",
        "--auth-hs256=true",
        "--auth-hs256-secret-file=s",
    ];
    let from_file = load_with(file, &[], &[]).unwrap();
    assert_eq!(from_file.dispatchers, ["a:1", "b:2"]);
    assert_eq!(from_file.platforms["ios"], Policy::NewestWins);
    assert_eq!(load_with("", &environment, &[]).unwrap(), from_file);
    assert_eq!(load_with("", &[], &flags).unwrap(), from_file);
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_what_was_expected() {
    // file, variables, flags, every part that the complaint must have
    type Case = (
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        ("listn = 'x'", &[], &[], &["unknown key `listn` in file FILE", "did you mean `listen`?"]),
        ("[auth]\njwks = 'x'", &[], &[], &["unknown key `auth.jwks` in file FILE", "expected"]),
        (
            "[atuh]\nhs256 = true",
            &[],
            &[],
            &["unknown key `atuh` in file FILE", "expected one of listen, admin"],
        ),
        ("auth = 3", &[], &[], &["auth in file FILE", "a table"]),
        (
            "",
            &[("MILLRACE_LISTN", "x")],
            &[],
            &["unknown environment variable MILLRACE_LISTN", "`MILLRACE_LISTEN`"],
        ),
        ("listen = 7400", &[], &[], &["`listen = 7400` in file FILE", "127.0.0.1:7400"]),
        ("listen = '", &[], &[], &["file FILE", "a readable TOML file"]),
        (
            "",
            &[("MILLRACE_LISTEN", "here")],
            &[],
            &["`listen = \"here\"` in environment variable MILLRACE_LISTEN"],
        ),
        (
            "",
            &[],
            &["--listen", "here"],
            &["`listen = \"here\"` in flag --listen", "expected an address and port"],
        ),
        ("gateway_id = 4096", &[], &[], &["`gateway_id = 4096`", "from 1 to 4095"]),
        ("gateway_id = -1", &[], &[], &["`gateway_id = -1`", "from 1 to 4095"]),
        ("partitions = 1.5", &[], &[], &["`partitions = 1.5`", "a whole number from 1 to 1024"]),
        (
            "",
            &[("MILLRACE_SHARDS", "many")],
            &[],
            &["`shards = \"many\"` in environment variable MILLRACE_SHARDS"],
        ),
        ("shards = 2\ncapacity = 1", &[], &[], &["`capacity = 1`", "from 2 to"]),
        ("io = 'kqueue'", &[], &[], &["`io = \"kqueue\"`", "auto, uring or epoll"]),
        ("cluster = ''", &[], &[], &["`cluster = \"\"`", "1-64 of"]),
        ("dispatchers = ['a']\ngateway_id = 1", &[], &[], &["`dispatchers = [\"a\"]`", "host:port"]),
        (
            "dispatchers = ['a:1']",
            &[],
            &[],
            &["`gateway_id` is not set", "1-4095", "`auth.jwks_file` is not set"],
        ),
        ("platforms = { ios = 'oldest' }", &[], &[], &["{ ios = \"oldest\" }", "keep_all or newest_wins"]),
        ("", &[], &["--platforms", "ios"], &["`platforms = \"ios\"` in flag --platforms"]),
        ("[auth]\nhs256 = true", &[], &[], &["`auth.hs256 = true`", "auth.hs256_secret_file beside it"]),
        (
            "[auth]\nhs256_secret_file = 'x'",
            &[],
            &[],
            &["auth.hs256_secret_file", "auth.hs256 = true beside it"],
        ),
        ("[auth]\nhs256 = 'yes'", &[], &[], &["`auth.hs256 = \"yes\"`", "true or false"]),
        (
            "payload_bytes_max = 1000000",
            &[],
            &[],
            &["`payload_bytes_max = 1000000`", "a whole number from 1 to"],
        ),
        ("outbox_bytes_max = 100000", &[], &[], &["`outbox_bytes_max = 100000`", "at least 131072"]),
        ("admin = '127.0.0.1:7400'", &[], &[], &["`admin = ", "another address than `listen`"]),
        ("drain_s = 0\nlease_ttl_ms = 1", &[], &[], &["`drain_s = 0`", "`lease_ttl_ms = 1`"]),
    ];
    for (file, environment, flags, parts) in cases {
        let error =
            load_with(file, environment, flags).expect_err(&format!("{file:?} {environment:?} {flags:?}"));
        let text = error.to_string();
        for part in *parts {
            assert!(
                text.contains(part),
                "{file:?} {environment:?} {flags:?}\n gave: {text}\n without: {part}"
            );
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let matches =
        with_flags(Command::new("g")).try_get_matches_from(["g", "--config", "/nowhere/x.toml"]).unwrap();
    let error = load(&matches, std::iter::empty()).unwrap_err().to_string();
    assert!(error.contains("/nowhere/x.toml"), "{error}");
}

/// The table is what complaints, variables and flags are made from: each entry must be read by somebody.
#[test]
fn every_key_of_the_table_is_checked() {
    for key in KEYS {
        let bad = match key.kind {
            Kind::Text | Kind::Switch | Kind::Table => "12",
            Kind::Number | Kind::List => "{}",
        };
        let line = match key.name.split_once('.') {
            Some((table, name)) => format!("[{table}]\n{name} = {bad}"),
            None => format!("{} = {bad}", key.name),
        };
        let error = load_with(&line, &[], &[]).expect_err(key.name).to_string();
        assert!(error.contains(&format!("`{} = ", key.name)), "{}: {error}", key.name);
    }
}
