const cluster = require('cluster');
if (cluster.isPrimary) {
	for (let i = 0; i < 3; i++) cluster.fork();
} else {
	require('http').createServer((_, response) => response.end('ok\n')).listen(80, 'ADDRESS');
}
