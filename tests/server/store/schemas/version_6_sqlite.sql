-- Schema version 6 on sqlite, as commit 8777cbc created it.

CREATE TABLE about (
    version INTEGER NOT NULL
);

CREATE TABLE jobs (
    id VARCHAR(64) NOT NULL,
    "key" VARCHAR(64) NOT NULL,
    model TEXT NOT NULL,
    request JSON NOT NULL,
    origin JSON NOT NULL,
    webhook TEXT,
    priority INTEGER NOT NULL,
    work FLOAT NOT NULL,
    rank FLOAT NOT NULL,
    state VARCHAR(16) NOT NULL,
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    owner VARCHAR(64),
    lease FLOAT,
    canceling BOOLEAN NOT NULL,
    created FLOAT NOT NULL,
    started FLOAT,
    ended FLOAT,
    error TEXT,
    result JSON,
    PRIMARY KEY (id)
);

CREATE INDEX jobs_newest ON jobs ("key", created, id);

CREATE INDEX jobs_next ON jobs (state, priority, rank, id);

CREATE INDEX jobs_owned ON jobs (owner, lease);

CREATE INDEX jobs_queued ON jobs ("key", state, work);

CREATE TABLE keys (
    digest VARCHAR(64) NOT NULL,
    name VARCHAR(100) NOT NULL,
    created FLOAT NOT NULL,
    revoked FLOAT,
    PRIMARY KEY (digest),
    UNIQUE (name)
);

CREATE TABLE secrets (
    "key" VARCHAR(64) NOT NULL,
    secret TEXT NOT NULL,
    PRIMARY KEY ("key")
);

CREATE TABLE usage (
    job VARCHAR(64) NOT NULL,
    "key" VARCHAR(64) NOT NULL,
    model TEXT NOT NULL,
    state VARCHAR(16) NOT NULL,
    ended FLOAT NOT NULL,
    day VARCHAR(10) NOT NULL,
    pictures INTEGER NOT NULL,
    megapixel_steps FLOAT NOT NULL,
    device_seconds FLOAT NOT NULL,
    PRIMARY KEY (job)
);

CREATE INDEX usage_by_key ON usage ("key", day);

CREATE TABLE events (
    job VARCHAR(64) NOT NULL,
    number INTEGER NOT NULL,
    at FLOAT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    body JSON NOT NULL,
    PRIMARY KEY (job, number),
    FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE outbox (
    id INTEGER NOT NULL,
    job VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    state VARCHAR(16) NOT NULL,
    due FLOAT NOT NULL,
    tries INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE INDEX ix_outbox_job ON outbox (job);

CREATE INDEX outbox_due ON outbox (state, due);

CREATE TABLE tokens (
    "key" VARCHAR(64) NOT NULL,
    token VARCHAR(256) NOT NULL,
    body VARCHAR(64) NOT NULL,
    job VARCHAR(64) NOT NULL,
    PRIMARY KEY ("key", token),
    FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE INDEX ix_tokens_job ON tokens (job);

CREATE TABLE uses (
    job VARCHAR(64) NOT NULL,
    file VARCHAR(64) NOT NULL,
    PRIMARY KEY (job, file),
    FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE INDEX ix_uses_file ON uses (file);

CREATE TABLE deliveries (
    id INTEGER NOT NULL,
    post INTEGER NOT NULL,
    at FLOAT NOT NULL,
    status INTEGER,
    error TEXT,
    seconds FLOAT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(post) REFERENCES outbox (id) ON DELETE CASCADE
);

CREATE INDEX ix_deliveries_post ON deliveries (post);

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE uploads (
    id VARCHAR(64) NOT NULL,
    "key" VARCHAR(64) NOT NULL,
    file VARCHAR(64),
    size BIGINT NOT NULL,
    name TEXT NOT NULL,
    content_type TEXT NOT NULL,
    details JSON NOT NULL,
    created FLOAT NOT NULL,
    deleted BOOLEAN NOT NULL,
    PRIMARY KEY (id, "key")
);

CREATE INDEX uploads_newest ON uploads ("key", created, id);

CREATE INDEX uploads_oldest ON uploads (created);
