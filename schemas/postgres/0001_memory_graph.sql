-- The durable memory graph. Everything is keyed by user first, so that the schema also runs where Postgres is sharded
-- by user. Run by the owner role; the application role owns nothing and is granted what it needs in 0002.

create table memory.heads (
    user_id text not null,
    -- A new epoch says that the past was rewritten: every copy must reload.
    epoch uuid not null default gen_random_uuid(),
    -- Gapless, taken under this row's lock in the transaction that writes.
    rev bigint not null default 0,
    -- Everything of this user at or below this revision was erased and is dead wherever it is met.
    erased_rev bigint not null default 0,
    erased_at timestamptz,
    nodes bigint not null default 0,
    relationships bigint not null default 0,
    created_at timestamptz not null default now(),
    last_activity timestamptz not null default now(),
    constraint heads_pkey primary key (user_id)
);

create table memory.nodes (
    user_id text not null,
    node_id uuid not null,
    namespace text not null,
    key text,
    context_type text not null,
    -- json, not jsonb: jsonb rewrites 1e22 and -0.0, and the exact text is what was hashed.
    content json not null,
    row_hash text not null,
    text_content text not null,
    summary text,
    tags text[] not null,
    importance double precision not null check (importance between 0 and 1),
    entity_system text,
    entity_id text,
    entity_type text,
    session_id text,
    source_agent text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    expires_at timestamptz,
    last_accessed_at timestamptz,
    access_count bigint not null default 0,
    deleted_at timestamptz,
    -- Hybrid logical clock of the change.
    stamp bigint not null,
    rev bigint not null,
    -- What the writer had seen when it made this: 0 nothing, above 0 that revision of the row, below 0 its own queued
    -- operation of that number. Anything else present when it arrives is a conflict.
    base bigint not null,
    -- The client that wrote it, and its operation's number; 0 where a conflict was decided, which no follower has seen.
    writer uuid not null,
    writer_seq bigint not null,
    constraint nodes_pkey primary key (user_id, node_id)
);
create index nodes_by_rev on memory.nodes (user_id, rev);
create index nodes_by_creation on memory.nodes (user_id, created_at desc);
create index nodes_by_entity on memory.nodes (user_id, entity_system, entity_id) where entity_system is not null;
create index nodes_by_expiry on memory.nodes (user_id, expires_at) where expires_at is not null;

create table memory.relationships (
    user_id text not null,
    relationship_id uuid not null,
    source_id uuid not null,
    target_id uuid not null,
    relationship_type text not null,
    weight double precision not null,
    properties json not null,
    row_hash text not null,
    valid_from timestamptz,
    valid_to timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted_at timestamptz,
    stamp bigint not null,
    rev bigint not null,
    base bigint not null,
    writer uuid not null,
    writer_seq bigint not null,
    constraint relationships_pkey primary key (user_id, relationship_id),
    constraint relationships_source foreign key (user_id, source_id) references memory.nodes on delete cascade,
    constraint relationships_target foreign key (user_id, target_id) references memory.nodes on delete cascade
);
create index relationships_by_rev on memory.relationships (user_id, rev);
create index relationships_by_source on memory.relationships (user_id, source_id);
create index relationships_by_target on memory.relationships (user_id, target_id);

create table memory.vectors (
    user_id text not null,
    node_id uuid not null,
    model text not null,
    dimensions integer not null check (dimensions between 1 and 16000),
    -- Little-endian float32, the truth also where pgvector is absent.
    embedding bytea not null,
    text_hash text not null,
    rev bigint not null,
    constraint vectors_pkey primary key (user_id, node_id, model),
    constraint vectors_node foreign key (user_id, node_id) references memory.nodes on delete cascade,
    constraint vectors_whole check (octet_length(embedding) = 4 * dimensions)
);
create index vectors_by_rev on memory.vectors (user_id, rev);

create table memory.node_history (
    user_id text not null,
    node_id uuid not null,
    -- The revision the content had, or for the losing side of a conflict the revision that beat it.
    rev bigint not null,
    -- 'replaced': content that a change overwrote. 'lost': content that a conflict decided against.
    reason text not null check (reason in ('replaced', 'lost')),
    recorded_at timestamptz not null default clock_timestamp(),
    context_type text not null,
    content json not null,
    summary text,
    tags text[] not null,
    stamp bigint not null,
    writer uuid not null,
    replaced_by uuid,
    -- With the stamp, because one writer can lose more than once against the same revision.
    constraint node_history_pkey primary key (user_id, node_id, rev, reason, writer, stamp)
);

-- Relationships that a conflict decided against: their own row was deleted or written later, or an end was deleted.
create table memory.relationship_history (
    user_id text not null,
    relationship_id uuid not null,
    recorded_at timestamptz not null default clock_timestamp(),
    source_id uuid not null,
    target_id uuid not null,
    relationship_type text not null,
    weight double precision not null,
    properties json not null,
    deleted_at timestamptz,
    stamp bigint not null,
    writer uuid not null,
    constraint relationship_history_pkey primary key (user_id, relationship_id, writer, stamp)
);

create table memory.applied (
    user_id text not null,
    client_id uuid not null,
    -- The batch carried last: [first_seq, last_seq] of that client's queue. What is at or below last_seq is done.
    first_seq bigint not null,
    last_seq bigint not null,
    -- The number and token of the opening of the client's file that carried it; an older opening is fenced off.
    open_number bigint not null,
    open_token uuid not null,
    -- That client's last erasure of the user: its number, the erasure that stood before it, and the one it made.
    erase_seq bigint,
    erased_over bigint,
    erased_rev bigint,
    updated_at timestamptz not null default now(),
    constraint applied_pkey primary key (user_id, client_id)
);

create table memory.access_log (
    user_id text not null,
    logged_at timestamptz not null default clock_timestamp(),
    log_id uuid not null default gen_random_uuid(),
    operation text not null,
    node_id uuid,
    session_id text,
    agent_id text,
    success boolean not null,
    error_class text,
    request json,
    constraint access_log_pkey primary key (user_id, logged_at, log_id)
) partition by range (logged_at);
create table memory.access_log_rest partition of memory.access_log default;

-- What an update overwrites goes to history, whichever statement made it.
create function memory.keep_replaced_content() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into memory.node_history
        (user_id, node_id, rev, reason, context_type, content, summary, tags, stamp, writer, replaced_by)
    values (old.user_id, old.node_id, old.rev, 'replaced', old.context_type, old.content, old.summary, old.tags,
            old.stamp, old.writer, new.writer)
    on conflict do nothing;
    return null;
end
$$;
create trigger nodes_keep_replaced after update on memory.nodes
    for each row when (old.row_hash is distinct from new.row_hash) execute function memory.keep_replaced_content();
