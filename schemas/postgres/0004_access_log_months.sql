-- The audit log is kept in months. The application role owns nothing, so it asks for a month by this function.

create function memory.ensure_access_log_month(p_day date) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_month date := date_trunc('month', p_day)::date;
    v_name text := 'access_log_' || to_char(v_month, 'YYYY_MM');
begin
    if p_day is null or p_day not between current_date - 31 and current_date + 400 then
        raise exception 'a month from the last one to thirteen ahead' using errcode = 'HM010';
    end if;
    -- One at a time; the second finds the table made.
    perform pg_advisory_xact_lock(hashtextextended('memory.access_log', 0));
    if to_regclass(format('memory.%I', v_name)) is not null then
        return v_name;
    end if;
    execute format(
        'create table memory.%I partition of memory.access_log for values from (%L) to (%L)',
        v_name, v_month, (v_month + interval '1 month')::date);
    execute format('alter table memory.%I enable row level security', v_name);
    execute format('alter table memory.%I force row level security', v_name);
    execute format(
        'create policy tenant on memory.%I using (user_id = any ((select array_append('
        || 'nullif(current_setting(''memory.user_ids'', true), '''')::text[], '
        || 'nullif(current_setting(''memory.user_id'', true), '''')))::text[]))',
        v_name);
    return v_name;
end
$$;
revoke all on function memory.ensure_access_log_month(date) from public;
grant execute on function memory.ensure_access_log_month(date) to hybrid_memory_app;
