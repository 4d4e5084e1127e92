-- The hot tier: one file per process. Two parts with different worth:
--   the cache  (users, generations, nodes, relationships, vectors, receipts) may be thrown away and loaded again from Postgres;
--   the rest   (meta, outbox, dead_letters, transient, checkpoints) exists nowhere else and may not.
-- Times are microseconds since the epoch. Text is stored as text so that a load needs no conversion.

create table meta (
    key text primary key not null,
    value text not null
) strict, without rowid;

-- One row for each user held. A load fills a new user_no out of sight; pointing this row at it shows it in one step.
create table users (
    user_id text primary key not null,
    user_no integer not null unique,
    epoch text,
    rev integer not null default 0,
    -- The last erasure known; -1 while Postgres has not been asked.
    erased_rev integer not null default -1,
    timeline integer not null default 0,
    complete integer not null default 0,
    loaded_at integer,
    confirmed_at integer,
    last_used_at integer not null
) strict, without rowid;

-- Generations out of sight: loads not finished, and copies that were replaced or evicted. Swept in small steps.
create table generations (
    user_no integer primary key not null
) strict;

-- row_id grows with every row of the file. What is stored together is written together, whosever it is: in a block of
-- row ids for each user, a group of 64 users' writes touched five pages a row instead of two.
create table nodes (
    row_id integer primary key not null,
    user_no integer not null,
    node_id text not null,
    namespace text not null,
    key text,
    context_type text not null,
    content text not null,
    row_hash text not null,
    text_content text not null,
    summary text,
    tags text not null,
    importance real not null,
    entity_system text,
    entity_id text,
    entity_type text,
    session_id text,
    source_agent text,
    created_at integer not null,
    updated_at integer not null,
    expires_at integer,
    last_accessed_at integer,
    access_count integer not null default 0,
    deleted_at integer,
    stamp integer not null,
    rev integer not null,
    -- What few nodes have, in one column: reading eight columns takes as long as finding the row. Ids hold no control
    -- character and are never empty, so they are joined by one, '' for null; the summary, which may hold any, comes
    -- last. (Not json_array: older SQLites refuse it here where the schema is not trusted.)
    labels text generated always as (
        case when coalesce(key, summary, entity_system, session_id, source_agent) is not null
        then coalesce(key, '') || char(31) || coalesce(entity_system, '') || char(31) || coalesce(entity_id, '')
            || char(31) || coalesce(entity_type, '') || char(31) || coalesce(session_id, '') || char(31)
            || coalesce(source_agent, '') || coalesce(char(31) || summary, '') end
    ) stored
) strict;
create unique index nodes_by_id on nodes (user_no, node_id);
create index nodes_by_creation on nodes (user_no, created_at, row_id);
create index nodes_by_entity on nodes (user_no, entity_system, entity_id) where entity_system is not null;
create index nodes_by_expiry on nodes (expires_at) where expires_at is not null;

create table relationships (
    row_id integer primary key not null,
    user_no integer not null,
    relationship_id text not null,
    source_id text not null,
    target_id text not null,
    relationship_type text not null,
    weight real not null,
    properties text not null,
    row_hash text not null,
    valid_from integer,
    valid_to integer,
    created_at integer not null,
    updated_at integer not null,
    deleted_at integer,
    stamp integer not null,
    rev integer not null
) strict;
create unique index relationships_by_source on relationships (user_no, source_id, relationship_type, target_id);
create index relationships_by_target on relationships (user_no, target_id);

create table vectors (
    user_no integer not null,
    node_id text not null,
    model text not null,
    dimensions integer not null,
    embedding blob not null,
    text_hash text not null,
    rev integer not null,
    primary key (user_no, node_id, model)
) strict;

-- seq is gap-free and never used twice: it goes on from the highest that is here or was here.
create table outbox (
    seq integer primary key not null,
    op_id text not null,
    user_id text not null,
    kind text not null check (kind in ('node', 'relationship', 'erase')),
    entity_id text not null,
    -- What the operation was made on: 0 nothing, above 0 that revision, below 0 our own operation of that number.
    base integer not null,
    -- By how much it changes the count of live rows: 1, 0, or -1 for a burial.
    delta integer not null,
    stamp integer not null,
    payload text not null,
    accepted_at integer not null,
    -- CRC-32 of all the above: SQLite gives back what a damaged page holds, and says nothing.
    checksum integer not null
) strict;
create index outbox_by_entity on outbox (user_id, entity_id);
-- Whatever removes an entry, its number is remembered; what only adds entries need not write it down.
create trigger outbox_remembers after delete on outbox begin
    update meta set value = cast(old.seq as text) where key = 'last_seq' and cast(value as integer) < old.seq;
end;

create table dead_letters (
    op_id text primary key not null,
    seq integer not null,
    user_id text not null,
    kind text not null,
    entity_id text not null,
    base integer not null,
    delta integer not null,
    stamp integer not null,
    payload text not null,
    accepted_at integer not null,
    checksum integer not null,
    died_at integer not null,
    sqlstate text not null,
    reason text not null
) strict, without rowid;

-- What became of recent operations, a row for each batch that was settled: `decided` is a JSON array of
-- [seq, rev, verdict]. Kept for a while; holds nothing of what was stored.
create table receipts (
    first_seq integer primary key not null,
    last_seq integer not null,
    decided_at integer not null,
    decided text not null
) strict;

create table threads (
    thread_id text primary key not null,
    last_used_at integer not null
) strict, without rowid;

create table transient (
    thread_id text not null,
    node_id text not null,
    context_type text not null,
    content text not null,
    created_at integer not null,
    expires_at integer,
    primary key (thread_id, node_id)
) strict, without rowid;
create index transient_by_expiry on transient (expires_at) where expires_at is not null;

create table checkpoints (
    thread_id text not null,
    checkpoint_id text not null,
    parent_id text,
    state text not null,
    created_at integer not null,
    primary key (thread_id, checkpoint_id)
) strict;
