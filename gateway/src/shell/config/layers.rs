//! The layers of the configuration (file, environment, flags) merged, each value with the place it came from.
//!
//! figment merges; every variable and every flag is a provider of its own, so that a complaint can name it. What
//! values mean is [`super`]'s business.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Empty, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::Problem;
use super::keys::{ENV_OTHERS, ENV_PREFIX, KEYS, Key, Kind};

/// All layers, merged.
#[derive(Debug)]
pub(super) struct Layers {
    figment: Figment,
    values: Dict,
}

/// One value from a variable or a flag.
struct Single {
    place: String,
    key: &'static Key,
    text: String,
}

impl Provider for Single {
    fn metadata(&self) -> Metadata {
        Metadata::from("command line or environment", Source::Custom(self.place.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(self.key.name, read(self.key.kind, &self.text));
        let dict = nested.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// The value that a text stands for. A text that does not fit stays a text, for the check to complain about.
fn read(kind: Kind, text: &str) -> Value {
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    match kind {
        Kind::Text => Value::from(text),
        Kind::Number => text.trim().parse::<u64>().map_or_else(|_| Value::from(text), Value::from),
        Kind::Switch => text.trim().parse::<bool>().map_or_else(|_| Value::from(text), Value::from),
        Kind::List => Value::from(parts().collect::<Vec<_>>()),
        Kind::Table => {
            let pairs: Option<Dict> = parts()
                .map(|part| {
                    part.split_once('=')
                        .map(|(key, value)| (key.trim().to_owned(), Value::from(value.trim())))
                })
                .collect();
            pairs.map_or_else(|| Value::from(text), Value::from)
        }
    }
}

/// Adds `--config` and a flag for every setting.
pub(super) fn flags(command: Command) -> Command {
    let config =
        Arg::new("config").long("config").value_name("FILE").help("Settings in TOML; all have defaults");
    KEYS.iter().fold(command.arg(config.value_parser(clap::value_parser!(PathBuf))), |command, key| {
        let value = match key.kind {
            Kind::Text => "TEXT",
            Kind::Number => "NUMBER",
            Kind::Switch => "true|false",
            Kind::List => "A,B,…",
            Kind::Table => "KEY=VALUE,…",
        };
        command.arg(Arg::new(key.name).long(key.flag()).value_name(value).help(key.help).global(false))
    })
}

impl Layers {
    /// Reads the file that `--config` names, then the environment, then the flags.
    pub(super) fn read(
        matches: &ArgMatches,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut figment = Figment::new();
        if let Some(path) = matches.get_one::<PathBuf>("config") {
            figment = figment.merge(Toml::file_exact(path));
        }
        let mut variables: Vec<_> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX))
            .filter(|(name, _)| !ENV_OTHERS.iter().any(|other| name.starts_with(other)))
            .collect();
        variables.sort();
        for (name, value) in variables {
            let place = format!("environment variable {name}");
            match (KEYS.iter().find(|key| key.variable() == name), value.into_string()) {
                (Some(key), Ok(text)) => figment = figment.merge(Single { place, key, text }),
                (Some(_), Err(_)) => problems.push(Problem::new(place, "text in UTF-8")),
                (None, _) => {
                    let given = name[ENV_PREFIX.len()..].to_ascii_lowercase();
                    problems.push(unknown(&place, "variable", &name, &given, |key| key.variable()));
                }
            }
        }
        for key in KEYS {
            if let Some(text) = matches.get_one::<String>(key.name) {
                let place = format!("flag --{}", key.flag());
                figment = figment.merge(Single { place, key, text: text.clone() });
            }
        }
        let values = match figment.extract::<Dict>() {
            Ok(values) => values,
            Err(error) => {
                let place = match matches.get_one::<PathBuf>("config") {
                    Some(path) => format!("file {}", path.display()),
                    None => "settings".to_owned(),
                };
                problems.push(Problem::new(place, &format!("a readable TOML file ({error})")));
                return Err(problems);
            }
        };
        let layers = Layers { figment, values };
        layers.find_unknown("", &layers.values, &mut problems);
        if problems.is_empty() { Ok(layers) } else { Err(problems) }
    }

    /// The value of a setting, with where it was set.
    pub(super) fn get(&self, name: &str) -> Option<(&Value, String)> {
        let mut dict = &self.values;
        let mut parts = name.split('.').peekable();
        loop {
            let value = dict.get(parts.next()?)?;
            if parts.peek().is_none() {
                return (!matches!(value, Value::Empty(_, Empty::None | Empty::Unit)))
                    .then(|| (value, self.place(value)));
            }
            dict = value.as_dict()?;
        }
    }

    fn place(&self, value: &Value) -> String {
        match self.figment.get_metadata(value.tag()).and_then(|metadata| metadata.source.as_ref()) {
            Some(Source::File(path)) => format!("file {}", shown(path)),
            Some(Source::Custom(place)) => place.clone(),
            _ => "settings".to_owned(),
        }
    }

    fn find_unknown(&self, above: &str, values: &Dict, problems: &mut Vec<Problem>) {
        for (name, value) in values {
            let full = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            if KEYS.iter().any(|key| key.name == full) {
                continue;
            }
            let table = KEYS.iter().any(|key| key.name.starts_with(&format!("{full}.")));
            match value.as_dict() {
                Some(inner) if table => self.find_unknown(&full, inner, problems),
                _ if table => {
                    problems.push(Problem::new(format!("{full} in {}", self.place(value)), "a table"));
                }
                _ => {
                    let place = self.place(value);
                    problems.push(unknown(&place, "key", &full, &full, |key| key.name.to_owned()));
                }
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn unknown(place: &str, what: &str, name: &str, given: &str, spell: impl Fn(&Key) -> String) -> Problem {
    let wanted = given.replace('.', "_");
    let near = KEYS.iter().min_by_key(|key| distance(&key.name.replace('.', "_"), &wanted));
    let near = near.filter(|key| distance(&key.name.replace('.', "_"), &wanted) <= NEAR);
    let expected = match near {
        Some(key) => format!("a {what} that exists (did you mean `{}`?)", spell(key)),
        None => format!("one of {}", KEYS.iter().map(spell).collect::<Vec<_>>().join(", ")),
    };
    let place =
        if what == "key" { format!("unknown key `{name}` in {place}") } else { format!("unknown {place}") };
    Problem::new(place, &expected)
}

/// Edits up to which a name counts as misspelt.
const NEAR: usize = 3;

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
