// A broadcast server on Socket.IO, written as its documentation shows it: what Tidegate is compared with.
// Event "m" goes to all other connections. WebSocket transport alone, no compression.
// Usage: node server.js PORT. Port 0 takes a free one; the last line printed names it.
'use strict';

const { createServer } = require('node:http');
const { Server } = require('socket.io');

const http = createServer();
const server = new Server(http, { transports: ['websocket'], perMessageDeflate: false, serveClient: false });

server.on('connection', (socket) => {
  socket.on('m', (data) => socket.broadcast.emit('m', data));
});

http.listen({ host: '127.0.0.1', port: Number(process.argv[2] ?? 0), backlog: 4096 }, () => {
  console.log(`listening on ${http.address().port}`);
});
