//! What commands show, as JSON: bytes as integers with `_bytes` in the name, times RFC 3339 UTC.

use super::doors::Doors;
use super::error::Result;
use super::pool::OpenPool;
use super::run_dir::id_text;
use crate::device::BLOCK_BYTES;
use crate::fs::{DeviceStatus, Timestamp, Took};
use crate::lun::{Access, BadPlace, Catalog, Holder, Lun, SessionInfo};
use serde_json::{json, Map, Value};

/// RFC 3339 in UTC, to the millisecond.
pub fn time_text(time: Timestamp) -> String {
    time.to_string()
}

const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/// `20.0 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

/// `1 copy`, `2 copies`.
pub fn count_text(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Figures of the pool, with its scrub.
pub fn pool_with_scrub(open: &OpenPool) -> Value {
    let mut shown = pool(open);
    shown["scrub"] = super::scrub::summary(&open.fs.scrub_status());
    shown
}

/// Figures of the pool.
pub fn pool(pool: &OpenPool) -> Value {
    let stats = pool.fs.stats();
    json!({
        "id": id_text(&pool.fs.pool_id()),
        "state": match (stats.latched.is_some(), pool.fs.has_all_copies()) {
            (true, _) => "read-only",
            (false, false) => "degraded",
            (false, true) => "online",
        },
        "redundancy": pool.fs.redundancy().to_string(),
        "size_bytes": stats.size_bytes,
        "free_bytes": stats.free_bytes,
        "used_bytes": stats.used_bytes,
        "freeing_bytes": stats.freeing_bytes,
        "reserved_bytes": stats.reserved_bytes,
        "dirty_bytes": stats.dirty_bytes,
        "cache_bytes": stats.cache_bytes,
        "written_bytes": stats.blocks_written.saturating_mul(BLOCK_BYTES as u64),
        "read_bytes": stats.blocks_read.saturating_mul(BLOCK_BYTES as u64),
        "device_flushes": stats.device_flushes,
        "consistency_points": stats.consistency_points,
        "groups": stats.groups,
        "checksum_errors": stats.checksum_errors,
        "devices": devices(pool),
        "balance": balance(pool),
    })
}

/// What made others wait since the pool was opened.
fn waits(pool: &OpenPool) -> Value {
    let waits = pool.fs.waits();
    let took = |took: Took| {
        json!({
            "count": took.count,
            "mean_us": micros(took.total_ns / took.count.max(1)),
            "longest_us": micros(took.longest_ns),
        })
    };
    json!({
        "cuts": took(waits.cuts),
        "consistency_points": took(waits.freezes),
        "snapshots": took(waits.snapshots),
        "device_flushes": took(waits.flushes),
    })
}

fn devices(pool: &OpenPool) -> Value {
    let mapped = pool.fs.mapped_bytes();
    let one = |status: DeviceStatus| {
        let mut shown = device(&status);
        shown["mapped_bytes"] = json!(mapped.get(usize::from(status.slot)));
        shown
    };
    pool.fs.devices().into_iter().map(one).collect()
}

fn device(device: &DeviceStatus) -> Value {
    let mut shown = json!({
        "path": device.path,
        "state": device.state,
        "size_bytes": device.size_bytes,
        "healed_copies": device.healed_copies,
    });
    if let Some((done, of)) = device.progress {
        shown["progress"] = json!({ "examined_bytes": done, "total_bytes": of });
    }
    shown
}

/// How far what the devices hold is from where it belongs.
fn balance(pool: &OpenPool) -> Value {
    match pool.fs.rebalance_status() {
        Ok(now) => json!({
            "state": match (now.is_done, now.is_waiting) {
                (true, _) => "idle",
                (_, true) => "waiting",
                _ => "running",
            },
            "moved_bytes": now.moved_bytes,
            "to_move_bytes": now.to_move_bytes,
        }),
        Err(e) => json!({ "state": "stopped", "why": e.to_string() }),
    }
}

/// All LUNs. One that is deleted while it is looked at is left out.
pub fn luns(catalog: &Catalog, doors: &Doors) -> Result<Value> {
    let mut shown = Vec::new();
    for one in &catalog.list() {
        match lun(catalog, one, doors) {
            Ok(value) => shown.push(value),
            Err(_) if is_gone(one) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(shown.into())
}

fn is_gone(lun: &Lun) -> bool {
    use crate::{fs, lun::Error};
    matches!(lun.attributes(), Err(Error::Gone | Error::Fs(fs::Error::Stale)))
}

/// One LUN.
pub fn lun(catalog: &Catalog, lun: &Lun, doors: &Doors) -> Result<Value> {
    let attributes = lun.attributes()?;
    let settings = &attributes.settings;
    let (lease, holders) = lease(&lun.lease_holder());
    let mut all = json!({
        "name": attributes.name,
        "size_bytes": attributes.size_bytes,
        "used_bytes": attributes.used_bytes,
        "free_bytes": attributes.free_bytes,
        "block_size_bytes": settings.block_bytes,
        "physical_exponent": settings.physical_exponent,
        "access": access_text(settings.access),
        "serial": settings.serial,
        "vendor": settings.vendor,
        "product": settings.product,
        "removable": settings.removable,
        "read_only": settings.read_only,
        "rotation_rate": settings.rotation_rate,
        "nbs_block_size_bytes": settings.nbs_block_bytes,
        "write_through": settings.write_through,
        "threshold_percent": settings.threshold_percent,
        "quota_bytes": settings.quota_bytes,
        "location": attributes.location,
        "redundancy": attributes.redundancy,
        "created": time_text(attributes.created),
        "users": attributes.users,
        "lease": { "state": lease, "holders": holders },
        "sessions": lun.sessions().iter().map(|session| session.id.0).collect::<Value>(),
        "open_files": lun.open_files(),
        "medium_errors": lun.medium_errors(),
        "snapshots": catalog.snapshot_count(&attributes.name).unwrap_or(0),
    });
    if let (Some(all), Value::Object(reach)) = (all.as_object_mut(), doors.reach(&attributes.name))
    {
        all.extend(reach);
    }
    Ok(all)
}

fn access_text(access: Access) -> &'static str {
    match access {
        Access::Exclusive => "exclusive",
        Access::Shared => "shared",
    }
}

fn lease(holder: &Holder) -> (&'static str, Vec<String>) {
    let files = |count: &usize| format!("{count} files open for writing");
    match holder {
        Holder::Idle => ("idle", Vec::new()),
        Holder::Block(clients) => ("block", clients.clone()),
        Holder::File(count) => ("file", vec![files(count)]),
        Holder::Both(clients, count) => {
            ("shared", clients.iter().cloned().chain([files(count)]).collect())
        }
    }
}

/// One session.
pub fn session(session: &SessionInfo) -> Value {
    json!({
        "id": session.id.0,
        "lun": session.lun,
        "door": session.door,
        "client": session.client,
        "peer": session.peer,
        "writable": session.writable,
        "quota_bytes": session.quota_bytes,
        "holds_lease": session.holds_lease,
        "since": time_text(session.since),
        "read_ops": session.read_ops,
        "read_bytes": session.read_bytes,
        "write_ops": session.write_ops,
        "written_bytes": session.written_bytes,
        "flush_ops": session.flush_ops,
        "refused_writes": session.refused_writes,
        "outstanding": session.outstanding,
        "iops": session.iops,
        "latency_mean_us": micros(session.latency.mean_ns),
        "latency_p99_us": micros(session.latency.p99_ns),
    })
}

/// Microseconds to a tenth.
fn micros(ns: u64) -> f64 {
    (ns / 100) as f64 / 10.0
}

/// Who was turned away: how many for each reason, and the last ones.
fn refusals(pool: &OpenPool) -> Value {
    let refusals = pool.book.refusals();
    let mut counts: Map<String, Value> = Map::new();
    counts.extend(refusals.counts().into_iter().map(|(reason, n)| (reason.to_owned(), n.into())));
    let (read_only, quota) = pool.catalog.refused_writes();
    counts.insert("read_only".into(), read_only.into());
    counts.insert("quota".into(), quota.into());
    let recent = refusals.recent();
    let recent = recent.iter().map(
        |one| json!({ "time": time_text(one.at), "reason": one.reason.as_str(), "who": one.who }),
    );
    counts.insert("recent".into(), recent.collect());
    Value::Object(counts)
}

/// The whole picture.
pub fn status(pool_open: &OpenPool, doors: &Doors) -> Result<Value> {
    let catalog = &pool_open.catalog;
    let luns = catalog.list();
    Ok(json!({
        "pool": pool(pool_open),
        "waits": waits(pool_open),
        "scrub": super::scrub::summary(&pool_open.fs.scrub_status()),
        "doors": doors.to_json(),
        "luns": self::luns(catalog, doors)?,
        "sessions": catalog.sessions().iter().map(session).collect::<Value>(),
        "policies": super::policy::rows(catalog),
        "initiators": pool_open.book.list().map_or(0, |all| all.len()),
        "refused": refusals(pool_open),
        "errors": errors(pool_open, &luns, doors),
        "device_events": pool_open.fs.device_events(),
        "process_id": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// What an operator has to look at: `{source, text}` each.
fn errors(pool: &OpenPool, luns: &[std::sync::Arc<Lun>], doors: &Doors) -> Value {
    let stats = pool.fs.stats();
    let mut found: Vec<(&str, String)> = Vec::new();
    if let Some(why) = stats.latched {
        found.push(("pool", format!("the pool stopped accepting writes: {why}")));
    }
    let events = pool.fs.device_events();
    let degraded = !pool.fs.has_all_copies();
    for d in pool.fs.devices().iter().filter(|d| is_wrong(d, degraded)) {
        // The newest word on how it came to that says why.
        let of_it = |event: &&String| event.contains(&d.path) && event.contains(d.state);
        let told = events.iter().rev().find(of_it).cloned();
        found.push(("device", told.unwrap_or_else(|| format!("device {} is {}", d.path, d.state))));
    }
    if stats.checksum_errors > 0 {
        let count = stats.checksum_errors;
        let reads = count_text(count, "read", "reads");
        found.push(("pool", format!("{reads} of blocks did not match their checksums")));
    }
    if let Some(why) = pool.book.failure() {
        found.push(("initiators", format!("nobody is let in: {why}")));
    }
    found.extend(doors.failures().into_iter().map(|text| ("door", text)));
    let unusable = pool.catalog.unusable().into_iter();
    found.extend(unusable.map(|(name, why)| ("lun", format!("{name} cannot be served: {why}"))));
    let policies = super::policy::failures(&pool.catalog).into_iter();
    found.extend(policies.map(|text| ("policy", text)));
    let scrub = pool.fs.scrub_status();
    if scrub.bad > 0 {
        let ended = scrub.finished.map(|time| format!(" of {}", time_text(time)));
        let (ended, blocks) = (ended.unwrap_or_default(), count_text(scrub.bad, "block", "blocks"));
        found.push(("scrub", format!("the scrub{ended} found {blocks} that it could not heal")));
    }
    let (places, unlisted) = pool.catalog.bad_places();
    if unlisted > 0 {
        let text = format!("{unlisted} more reads met bad blocks than can be listed");
        found.push(("pool", text));
    }
    let all = found.into_iter().map(|(source, text)| json!({ "source": source, "text": text }));
    all.chain(places.iter().map(|place| bad_place(pool, place, luns))).collect()
}

/// What is planned is not wrong: a device that leaves or is replaced, and the one that comes, while
/// there are all copies of everything.
fn is_wrong(device: &DeviceStatus, degraded: bool) -> bool {
    match device.state {
        "normal" | "removing" | "replace" => false,
        "missing" => true,
        _ => degraded,
    }
}

/// A place that cannot be read: whose it is, where, and on which block of the pool.
fn bad_place(pool: &OpenPool, place: &BadPlace, luns: &[std::sync::Arc<Lun>]) -> Value {
    let lun = luns.iter().find(|lun| lun.volume() == place.node.volume);
    let mut all = json!({
        "source": if lun.is_some() { "lun" } else { "file" },
        "block": place.block,
        "since": time_text(place.since),
    });
    let mut text = match lun {
        Some(lun) => {
            let (name, file) = (lun.name(), lun.file_name(place.node));
            let text = format!("{name}/{file}");
            (all["lun"], all["file"]) = (name.into(), file.into());
            text
        }
        None => {
            all["inode"] = place.node.number().into();
            pool.fs.text_of(place.node)
        }
    };
    if let Some(start) = place.offset_bytes {
        all["offset_bytes"] = start.into();
        all["length_bytes"] = BLOCK_BYTES.into();
        text += &format!(": {BLOCK_BYTES} bytes at {start}");
        if let Some((lba, blocks)) = lun.and_then(|lun| lun.blocks_at(place.node, start)) {
            (all["lba"], all["blocks"]) = (lba.into(), blocks.into());
            text += &format!(" (LBA {lba} to {})", lba + blocks - 1);
        }
    }
    all["text"] = format!("{text} cannot be read: bad block {} of the pool", place.block).into();
    all
}

/// What a dry run answers.
pub fn would(text: impl Into<String>) -> Value {
    let mut object = Map::new();
    object.insert("dry_run".into(), true.into());
    object.insert("would".into(), text.into().into());
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time_text(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_text(Timestamp(1_500_000_000)), "1970-01-01T00:00:01.500Z");
    }
}
