-- The one way in: a batch of many users' operations in one transaction, all or nothing.
--
-- Raises, with nothing done:
--   HM001  a mark is not below the batch (already applied, or sent by another opening of the file)
--   HM002  a user was erased after the operations were accepted
--   HM003  rows changed since their writer saw them, or the end of a relationship is deleted
--   23505  a node that its writer took for new is there (unique_violation)
-- and names the users concerned in DETAIL as a JSON array, as far as it can tell; the sender then decides those users,
-- or all of the batch, one by one.

-- Functions written as one RETURN are bound to what they name when they are made, so they need no pinned search path;
-- without one, and declared no better than what they call, they are folded into the statement (8 times faster).
create function memory.moment(p_us bigint) returns timestamptz
language sql stable parallel safe strict
return timestamptz 'epoch' + p_us * interval '1 microsecond';

-- One user's batch; returns the new revision and the epoch, as text. A caller who waits for one memory waits for this:
-- values where the other has arrays, one result that needs no row set, and an update of what is nearly always there
-- before an attempt to insert it.
create function memory.apply_one(
    p_client uuid,
    p_open_number bigint,
    p_open_token uuid,
    p_user text,
    -- How many revisions the operations take, the first and last queue number carried, the erasure known to the sender,
    -- and by how much the user's counts change.
    p_takes bigint,
    p_first_seq bigint,
    p_last_seq bigint,
    p_erased_rev bigint,
    p_node_count bigint,
    p_relationship_count bigint,
    -- JSON arrays of rows (see node_rows).
    p_nodes json,
    p_relationships json,
    -- All are nodes that their writer took for new: a plain insert does, which makes the call 7 % shorter.
    p_new boolean,
    -- Nodes are buried: relationships which the sender did not know of go with them.
    p_buries boolean
) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_rev bigint;
    v_epoch uuid;
begin
    perform set_config('memory.user_id', p_user, true);

    update memory.heads h
    set rev = h.rev + p_takes, nodes = h.nodes + p_node_count, relationships = h.relationships + p_relationship_count,
        last_activity = now()
    where h.user_id = p_user and h.erased_rev = p_erased_rev
    returning h.rev, h.epoch into v_rev, v_epoch;
    if not found then
        -- A new head has no erasure: where the sender knows of one, it was lost, and is to be repeated.
        insert into memory.heads as h (user_id, rev, erased_rev, nodes, relationships)
        select p_user, p_takes, p_erased_rev, p_node_count, p_relationship_count where p_erased_rev = 0
        on conflict (user_id) do update
            set rev = h.rev + excluded.rev, nodes = h.nodes + excluded.nodes,
                relationships = h.relationships + excluded.relationships, last_activity = now()
            where h.erased_rev = excluded.erased_rev
        returning h.rev, h.epoch into v_rev, v_epoch;
        if not found then
            raise exception 'erased after acceptance'
                using errcode = 'HM002', detail = json_build_array(p_user)::text;
        end if;
    end if;

    update memory.applied a
    set first_seq = p_first_seq, last_seq = p_last_seq, open_number = p_open_number, open_token = p_open_token,
        updated_at = now()
    where a.user_id = p_user and a.client_id = p_client and a.last_seq < p_first_seq
      and (a.open_number < p_open_number or (a.open_number = p_open_number and a.open_token = p_open_token));
    if not found then
        -- There is none, or it refuses the batch. The head is locked, so nobody makes one meanwhile.
        insert into memory.applied (user_id, client_id, first_seq, last_seq, open_number, open_token)
        values (p_user, p_client, p_first_seq, p_last_seq, p_open_number, p_open_token)
        on conflict (user_id, client_id) do nothing;
        if not found then
            raise exception 'already marked' using errcode = 'HM001', detail = json_build_array(p_user)::text;
        end if;
    end if;

    if p_new then
        insert into memory.nodes select * from memory.node_rows(p_client, array[v_rev], p_nodes);
    elsif memory.put_rows(p_client, array[v_rev], p_nodes, p_relationships) <> p_takes then
        raise exception 'conflict' using errcode = 'HM003';
    end if;
    if p_buries then
        perform memory.bury_relationships(p_client, p_user, v_rev - p_takes);
    end if;
    return array[v_rev::text, v_epoch::text];
end
$$;

create function memory.apply(
    p_client uuid,
    p_open_number bigint,
    p_open_token uuid,
    -- One element a user, users in ascending order; what each says is said above.
    p_users text[],
    p_takes bigint[],
    p_first_seqs bigint[],
    p_last_seqs bigint[],
    p_erased_revs bigint[],
    p_node_counts bigint[],
    p_relationship_counts bigint[],
    p_nodes json,
    p_relationships json,
    p_new boolean,
    -- The places in p_users (from 1) of users that bury nodes.
    p_burying integer[],
    out revs bigint[],
    out epochs uuid[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
-- Planning for the arrays' real lengths at each call costs more than it gains.
set plan_cache_mode = force_generic_plan as $$
declare
    v_users text[];
    v_place integer;
begin
    perform set_config('memory.user_ids', p_users::text, true);

    -- The head row is the user's lock; users come sorted, so two batches never wait for one another in a circle.
    with taken as (
        insert into memory.heads as h (user_id, rev, erased_rev, nodes, relationships)
        select u.* from unnest(p_users, p_takes, p_erased_revs, p_node_counts, p_relationship_counts)
            as u (user_id, rev, erased_rev, nodes, relationships)
        -- A new head has no erasure: where the sender knows of one, it was lost, and is to be repeated.
        where u.erased_rev = 0 or exists (select from memory.heads e where e.user_id = u.user_id)
        on conflict (user_id) do update
            set rev = h.rev + excluded.rev, nodes = h.nodes + excluded.nodes,
                relationships = h.relationships + excluded.relationships, last_activity = now()
            where h.erased_rev = excluded.erased_rev
        returning h.user_id, h.rev, h.epoch
    )
    select array_agg(t.user_id), array_agg(t.rev), array_agg(t.epoch) into v_users, revs, epochs from taken t;
    if v_users is distinct from p_users then
        raise exception 'erased after acceptance' using errcode = 'HM002', detail = memory.missing(p_users, v_users);
    end if;

    with marked as (
        insert into memory.applied as a (user_id, first_seq, last_seq, client_id, open_number, open_token)
        select u.*, p_client, p_open_number, p_open_token from unnest(p_users, p_first_seqs, p_last_seqs) as u
        on conflict (user_id, client_id) do update
            set first_seq = excluded.first_seq, last_seq = excluded.last_seq,
                open_number = excluded.open_number, open_token = excluded.open_token, updated_at = now()
            where a.last_seq < excluded.first_seq
              and (a.open_number < excluded.open_number
                   or (a.open_number = excluded.open_number and a.open_token = excluded.open_token))
        returning a.user_id
    )
    select array_agg(m.user_id) into v_users from marked m;
    if v_users is distinct from p_users then
        raise exception 'already marked' using errcode = 'HM001', detail = memory.missing(p_users, v_users);
    end if;

    if p_new then
        insert into memory.nodes select * from memory.node_rows(p_client, revs, p_nodes);
    elsif memory.put_rows(p_client, revs, p_nodes, p_relationships)
          <> (select sum(t.takes) from unnest(p_takes) as t (takes)) then
        raise exception 'conflict' using errcode = 'HM003';
    end if;
    if p_burying is not null then
        foreach v_place in array p_burying loop
            perform memory.bury_relationships(p_client, p_users[v_place], revs[v_place] - p_takes[v_place]);
        end loop;
    end if;
end
$$;

-- The rows of a batch as they will stand; their columns are the table's, in its order. `u` is the place of the row's user
-- in p_revs (from 1), which has the revision of that user's last row; `back` is how many of the user's rows in this batch
-- come after it.
create function memory.node_rows(p_client uuid, p_revs bigint[], p_nodes json) returns setof memory.nodes
language sql stable begin atomic
    select r.user_id, r.node_id, r.namespace, r.key, r.context_type, r.content, r.row_hash, r.text_content,
           r.summary, r.tags, r.importance, r.entity_system, r.entity_id, r.entity_type, r.session_id,
           r.source_agent, memory.moment(r.created_at), memory.moment(r.updated_at), memory.moment(r.expires_at),
           null::timestamptz, 0::bigint, memory.moment(r.deleted_at), r.stamp, p_revs[r.u] - r.back, r.base, p_client,
           r.seq
    from json_to_recordset(p_nodes) as r (
        u integer, back bigint, seq bigint, base bigint,
        user_id text, node_id uuid, namespace text, key text, context_type text, content json, row_hash text,
        text_content text, summary text, tags text[], importance double precision, entity_system text, entity_id text,
        entity_type text, session_id text, source_agent text, created_at bigint, updated_at bigint,
        expires_at bigint, deleted_at bigint, stamp bigint);
end;

create function memory.relationship_rows(p_client uuid, p_revs bigint[], p_relationships json)
returns setof memory.relationships
language sql stable begin atomic
    select r.user_id, r.relationship_id, r.source_id, r.target_id, r.relationship_type, r.weight, r.properties,
           r.row_hash, memory.moment(r.valid_from), memory.moment(r.valid_to), memory.moment(r.created_at),
           memory.moment(r.updated_at), memory.moment(r.deleted_at), r.stamp, p_revs[r.u] - r.back, r.base,
           p_client, r.seq
    from json_to_recordset(p_relationships) as r (
        u integer, back bigint, seq bigint, base bigint,
        user_id text, relationship_id uuid, source_id uuid, target_id uuid, relationship_type text,
        weight double precision, properties json, row_hash text, valid_from bigint, valid_to bigint,
        created_at bigint, updated_at bigint, deleted_at bigint, stamp bigint);
end;

-- Writes rows over what their writer saw, and says how many it wrote: fewer than there are, where one changed since, or
-- where an end of a live relationship is deleted.
create function memory.put_rows(p_client uuid, p_revs bigint[], p_nodes json, p_relationships json) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_nodes bigint = 0;
    v_relationships bigint = 0;
begin
    if p_nodes is not null then
        insert into memory.nodes as n select * from memory.node_rows(p_client, p_revs, p_nodes)
        on conflict (user_id, node_id) do update
            set namespace = excluded.namespace, key = excluded.key, context_type = excluded.context_type,
                content = excluded.content, row_hash = excluded.row_hash, text_content = excluded.text_content,
                summary = excluded.summary, tags = excluded.tags, importance = excluded.importance,
                entity_system = excluded.entity_system, entity_id = excluded.entity_id,
                entity_type = excluded.entity_type, session_id = excluded.session_id,
                source_agent = excluded.source_agent, created_at = excluded.created_at,
                updated_at = excluded.updated_at, expires_at = excluded.expires_at,
                deleted_at = excluded.deleted_at, stamp = excluded.stamp, rev = excluded.rev, base = excluded.base,
                writer = excluded.writer, writer_seq = excluded.writer_seq
            where n.rev = excluded.base or (n.writer = excluded.writer and n.writer_seq = nullif(-excluded.base, 0));
        get diagnostics v_nodes = row_count;
    end if;
    if p_relationships is not null then
        -- The nodes of the batch stand by now. Each end is looked up by its key in a subquery of its own: as a join, under
        -- row-level security, it would cost many times as much. An end that is not there is left to the foreign key.
        insert into memory.relationships as n
        select r.* from memory.relationship_rows(p_client, p_revs, p_relationships) as r
        where r.deleted_at is not null
           or ((select e.deleted_at from memory.nodes e where e.user_id = r.user_id and e.node_id = r.source_id) is null
               and (select e.deleted_at from memory.nodes e where e.user_id = r.user_id and e.node_id = r.target_id)
                   is null)
        on conflict (user_id, relationship_id) do update
            set weight = excluded.weight, properties = excluded.properties, row_hash = excluded.row_hash,
                valid_from = excluded.valid_from, valid_to = excluded.valid_to, created_at = excluded.created_at,
                updated_at = excluded.updated_at, deleted_at = excluded.deleted_at, stamp = excluded.stamp,
                rev = excluded.rev, base = excluded.base, writer = excluded.writer, writer_seq = excluded.writer_seq
            where n.rev = excluded.base or (n.writer = excluded.writer and n.writer_seq = nullif(-excluded.base, 0));
        get diagnostics v_relationships = row_count;
    end if;
    return v_nodes + v_relationships;
end
$$;

-- Buries the live relationships of the nodes buried after a revision, each with a revision of its own: a cascade of
-- the database would bypass the feed.
create function memory.bury_relationships(p_client uuid, p_user text, p_after_rev bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_orphans uuid[];
    v_rev bigint;
begin
    with buried as materialized (
        select n.node_id from memory.nodes n
        where n.user_id = p_user and n.rev > p_after_rev and n.deleted_at is not null
    )
    -- Two searches for each node (`offset 0` keeps them so): an OR would read all relationships of the user.
    select array_agg(distinct o.relationship_id order by o.relationship_id) into v_orphans
    from buried b
    cross join lateral (
        select r.relationship_id from memory.relationships r
        where r.user_id = p_user and r.source_id = b.node_id and r.deleted_at is null
        union all
        select r.relationship_id from memory.relationships r
        where r.user_id = p_user and r.target_id = b.node_id and r.deleted_at is null
        offset 0
    ) as o;
    if v_orphans is null then
        return 0;
    end if;
    update memory.heads h
    set rev = h.rev + cardinality(v_orphans), relationships = h.relationships - cardinality(v_orphans)
    where h.user_id = p_user
    returning h.rev into v_rev;
    update memory.relationships r
    set deleted_at = now(), updated_at = now(), rev = v_rev - cardinality(v_orphans) + o.place, base = r.rev,
        writer = p_client, writer_seq = 0
    from unnest(v_orphans) with ordinality as o (id, place)
    where r.user_id = p_user and r.relationship_id = o.id;
    return cardinality(v_orphans);
end
$$;

create function memory.missing(p_all text[], p_some text[]) returns text
language sql immutable parallel safe
return (select coalesce(json_agg(a.user_id)::text, '[]') from unnest(p_all) as a (user_id)
        where a.user_id <> all (coalesce(p_some, '{}')));

-- Opens the deciding of one user: sets the tenant for the rest of the transaction, locks the head and the mark, and
-- says how they stand.
create function memory.open_user(
    p_client uuid,
    p_user text,
    out head_rev bigint,
    out epoch uuid,
    out erased_rev bigint,
    -- When that was, in microseconds since the epoch.
    out erased_at bigint,
    out last_seq bigint,
    out open_number bigint,
    out open_token uuid,
    -- The client's own last erasure; nulls where there was none.
    out own_erase_seq bigint,
    out own_erased_over bigint,
    out own_erased_rev bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('memory.user_id', p_user, true);
    insert into memory.heads (user_id) values (p_user) on conflict do nothing;
    select h.rev, h.epoch, h.erased_rev, (extract(epoch from h.erased_at) * 1000000)::bigint
    into head_rev, epoch, erased_rev, erased_at
    from memory.heads h where h.user_id = p_user for update;
    select a.last_seq, a.open_number, a.open_token, a.erase_seq, a.erased_over, a.erased_rev
    into last_seq, open_number, open_token, own_erase_seq, own_erased_over, own_erased_rev
    from memory.applied a where a.user_id = p_user and a.client_id = p_client for update;
end
$$;

-- Gives a user a head, so that a copy of nothing has an epoch to belong to.
create function memory.ensure_head(p_user text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('memory.user_id', p_user, true);
    insert into memory.heads (user_id) values (p_user) on conflict do nothing;
end
$$;

-- The heads of the users named, as far as they have one, with the server's timeline and how many rows are live.
create function memory.heads_of(p_users text[])
returns table (user_id text, epoch text, rev bigint, erased_rev bigint, timeline bigint, live bigint)
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('memory.user_ids', p_users::text, true);
    return query
        select h.user_id, h.epoch::text, h.rev, h.erased_rev,
               ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint, h.nodes + h.relationships
        from memory.heads h where h.user_id = any (p_users);
end
$$;

-- The same of one user, as an array of text: what every session start asks for, and so in the cheapest form. One value
-- needs no row set; a pinned search path would cost as much as the look-up, so the names in it are written in full.
create function memory.head_of(p_user text) returns text[]
language plpgsql as $$
begin
    perform pg_catalog.set_config('memory.user_id', p_user, true);
    return (select array[h.epoch::text, h.rev::text, h.erased_rev::text,
                         pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())]
            from memory.heads h where h.user_id operator(pg_catalog.=) p_user);
end
$$;

-- XOR over live rows of the first 8 bytes (big-endian, signed) of sha256(id || rev || row_hash), all as text.
create function memory.digest(
    p_user text,
    p_now timestamptz,
    out value bigint,
    out nodes bigint,
    out relationships bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_relationships bigint;
begin
    perform set_config('memory.user_id', p_user, true);
    select coalesce(bit_xor(memory.digest_part(n.node_id, n.rev, n.row_hash)), 0), count(*) into value, nodes
    from memory.nodes n
    where n.user_id = p_user and n.deleted_at is null and (n.expires_at is null or n.expires_at > p_now);
    select coalesce(bit_xor(memory.digest_part(r.relationship_id, r.rev, r.row_hash)), 0), count(*)
    into v_relationships, relationships
    from memory.relationships r
    where r.user_id = p_user and r.deleted_at is null;
    value = value # v_relationships;
end
$$;

create function memory.digest_part(p_id uuid, p_rev bigint, p_row_hash text) returns bigint
language sql stable parallel safe
return ('x' || encode(substr(sha256(convert_to(p_id::text || p_rev::text || p_row_hash, 'UTF8')), 1, 8), 'hex'))
    ::bit(64)::bigint;

-- Erases a user. Whatever was accepted before and arrives later meets erased_rev and is refused. The audit row says
-- that it happened, and nothing of what was erased.
create function memory.erase(
    p_client uuid,
    p_open_number bigint,
    p_open_token uuid,
    p_seq bigint,
    p_user text,
    out erased_rev bigint,
    out nodes bigint,
    out relationships bigint,
    out history bigint
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_over bigint;
begin
    perform set_config('memory.user_id', p_user, true);
    insert into memory.heads (user_id) values (p_user) on conflict do nothing;
    -- Upon an erasure of the same client's it stands over what that stood over: one's own need not be heard of.
    select case when a.erased_rev = h.erased_rev then a.erased_over else h.erased_rev end into v_over
    from memory.heads h left join memory.applied a on a.user_id = h.user_id and a.client_id = p_client
    where h.user_id = p_user for update of h;
    update memory.heads h
    set rev = h.rev + 1, erased_rev = h.rev + 1, erased_at = clock_timestamp(), nodes = 0, relationships = 0, last_activity = now()
    where h.user_id = p_user
    returning h.erased_rev into erased_rev;
    delete from memory.node_history d where d.user_id = p_user;
    get diagnostics history = row_count;
    delete from memory.relationship_history d where d.user_id = p_user;
    delete from memory.vectors d where d.user_id = p_user;
    delete from memory.relationships d where d.user_id = p_user;
    get diagnostics relationships = row_count;
    delete from memory.nodes d where d.user_id = p_user;
    get diagnostics nodes = row_count;
    delete from memory.access_log d where d.user_id = p_user;
    insert into memory.access_log (user_id, operation, success) values (p_user, 'erase', true);
    if p_client is not null then
        insert into memory.applied as a
            (user_id, client_id, first_seq, last_seq, open_number, open_token, erase_seq, erased_over, erased_rev)
        values (p_user, p_client, p_seq, p_seq, p_open_number, p_open_token, p_seq, v_over, erase.erased_rev)
        on conflict (user_id, client_id) do update
            set first_seq = excluded.first_seq, last_seq = greatest(a.last_seq, excluded.last_seq),
                open_number = excluded.open_number, open_token = excluded.open_token,
                erase_seq = excluded.erase_seq, erased_over = excluded.erased_over, erased_rev = excluded.erased_rev,
                updated_at = now();
    end if;
end
$$;
