-- Who may see what. The application role (hybrid_memory_app; login roles are members of it) owns nothing, cannot
-- bypass row-level security, and sees only the users named in a transaction-local setting; without one, nothing.

do $$
declare
    v_table text;
begin
    foreach v_table in array array[
        'heads', 'nodes', 'relationships', 'vectors', 'node_history', 'relationship_history', 'applied', 'access_log',
        'access_log_rest'
    ] loop
        execute format('alter table memory.%I enable row level security', v_table);
        execute format('alter table memory.%I force row level security', v_table);
        -- A subquery, so that the settings are read once a statement and not once a row. Both settings absent give an
        -- array of nulls, which equals nothing.
        execute format(
            'create policy tenant on memory.%I using (user_id = any ((select array_append('
            || 'nullif(current_setting(''memory.user_ids'', true), '''')::text[], '
            || 'nullif(current_setting(''memory.user_id'', true), '''')))::text[]))',
            v_table);
    end loop;
end
$$;

grant usage on schema memory to hybrid_memory_app;
grant select, insert, update, delete on
    memory.heads, memory.nodes, memory.relationships, memory.vectors, memory.node_history, memory.relationship_history,
    memory.applied
    to hybrid_memory_app;
grant select, insert, delete on memory.access_log to hybrid_memory_app;
grant select on memory.migrations to hybrid_memory_app;
revoke all on all functions in schema memory from public;
grant execute on all functions in schema memory to hybrid_memory_app;

-- What an administrator counts; the application role sees one user's line of it.
create view memory.user_stats with (security_invoker = true) as
select h.user_id, h.nodes as total_nodes, h.relationships as total_relationships,
       (select count(*) from memory.nodes n
        where n.user_id = h.user_id and n.deleted_at is null and n.entity_id is not null) as total_entities,
       (select count(distinct n.context_type) from memory.nodes n
        where n.user_id = h.user_id and n.deleted_at is null) as context_types,
       (select max(n.created_at) from memory.nodes n
        where n.user_id = h.user_id and n.deleted_at is null) as latest_node,
       (select min(n.created_at) from memory.nodes n
        where n.user_id = h.user_id and n.deleted_at is null) as earliest_node
from memory.heads h;

create view memory.user_metadata with (security_invoker = true) as
select h.user_id, h.created_at, h.last_activity, h.nodes as total_nodes, h.relationships as total_relationships,
       json_build_object('epoch', h.epoch, 'rev', h.rev, 'erased_rev', h.erased_rev) as metadata
from memory.heads h;

create view memory.entities with (security_invoker = true) as
select n.user_id, n.node_id, n.entity_id, n.entity_system, n.entity_type, n.content, n.importance, n.created_at,
       n.updated_at
from memory.nodes n
where n.entity_id is not null and n.deleted_at is null;

grant select on memory.user_stats, memory.user_metadata, memory.entities to hybrid_memory_app;
