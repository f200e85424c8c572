//! Opening the store that the settings name.

use std::path::Path;
use std::sync::Arc;

use super::config::{Settings, StoreKind};
use super::node::StartError;
use crate::store::Store;
use crate::store::embedded::{self, Embedded};
use crate::store::redis::{self, RedisStore};

/// The store of a node that is alone.
pub(crate) fn embedded(dir: &Path, partitions: u16) -> Result<Arc<dyn Store>, StartError> {
    let store = Embedded::open(dir, embedded::Settings::new(partitions))
        .map_err(|error| StartError::Store(error.to_string()))?;
    Ok(Arc::new(store))
}

/// The store that the settings name; they were checked to say where it is.
pub(crate) fn open(settings: &Settings) -> Result<Arc<dyn Store>, StartError> {
    let missing = |what: &str| StartError::Store(format!("{what} is not set"));
    match settings.store {
        StoreKind::Embedded => {
            let dir = settings.data_dir.as_deref().ok_or_else(|| missing("data_dir"))?;
            embedded(dir, settings.partitions)
        }
        StoreKind::Redis => {
            let url = settings.redis.as_deref().ok_or_else(|| missing("redis"))?;
            let store =
                RedisStore::connect(url, redis::Settings::new(&settings.cluster, settings.partitions))
                    .map_err(|error| StartError::Store(error.to_string()))?;
            Ok(Arc::new(store))
        }
    }
}
