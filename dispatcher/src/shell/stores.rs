//! Opening the store that the settings name.

use std::path::Path;
use std::sync::Arc;

use super::config::{RedisMode, Settings, StoreKind};
use super::node::StartError;
use crate::store::Store;
use crate::store::embedded::{self, Embedded};
use crate::store::redis::{self, RedisStore, Topology};

/// The store of a node that is alone.
pub(crate) fn embedded(dir: &Path, partitions: u16, events_max: u64) -> Result<Arc<dyn Store>, StartError> {
    open_embedded(dir, embedded::Settings { events_max, ..embedded::Settings::new(partitions) })
}

/// The store that the settings name; they were checked to say where it is.
pub(crate) fn open(settings: &Settings) -> Result<Arc<dyn Store>, StartError> {
    let missing = |what: &str| StartError::Store(format!("{what} is not set"));
    match settings.store {
        StoreKind::Embedded => {
            let dir = settings.data_dir.as_deref().ok_or_else(|| missing("data_dir"))?;
            let defaults = embedded::Settings::new(settings.partitions);
            let durability = settings.durability.unwrap_or(defaults.durability);
            let events_max = settings.events_max;
            open_embedded(dir, embedded::Settings { durability, events_max, ..defaults })
        }
        StoreKind::Redis => {
            let url = settings.redis.as_deref().ok_or_else(|| missing("redis"))?;
            let defaults = redis::Settings::new(&settings.cluster, settings.partitions);
            let service = || settings.redis_sentinel_service.clone();
            let topology = match settings.redis_mode {
                RedisMode::Single => Topology::Single,
                RedisMode::Sentinel => Topology::Sentinel {
                    service: service().ok_or_else(|| missing("redis_sentinel_service"))?,
                },
                RedisMode::Cluster => Topology::Cluster,
            };
            let durability = settings.durability.unwrap_or(defaults.durability);
            let events_max = settings.events_max;
            let settings = redis::Settings { topology, durability, events_max, ..defaults };
            let store =
                RedisStore::connect(url, settings).map_err(|error| StartError::Store(error.to_string()))?;
            Ok(Arc::new(store))
        }
    }
}

fn open_embedded(dir: &Path, settings: embedded::Settings) -> Result<Arc<dyn Store>, StartError> {
    let store = Embedded::open(dir, settings).map_err(|error| StartError::Store(error.to_string()))?;
    Ok(Arc::new(store))
}
